"""Writes what is generated from the declared settings and the command line: for the build, not for the daemon."""
