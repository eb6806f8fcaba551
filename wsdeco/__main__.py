"""`python -m wsdeco`."""

from wsdeco.cli import main

main()
