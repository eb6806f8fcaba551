"""The command line: `wsdeco run app.py --workers 4`. `main` finds the command; each has a module of its own."""
