"""The tests of wsdeco."""
