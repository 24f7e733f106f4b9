"""Tools of the build: write the files that follow from the declared settings, the command line and echod.service.

`generate.files` lists the files. Nothing of this is in the wheel.
"""
