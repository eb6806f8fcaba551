"""Read by PyInstaller if a program has the console: its page is data, which no analyser sees."""

from PyInstaller.utils.hooks import collect_data_files

datas = collect_data_files("wsdeco.console")
