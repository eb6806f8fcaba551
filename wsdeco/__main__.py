"""`python -m wsdeco`."""

from wsdeco.cli.main import main

main()
