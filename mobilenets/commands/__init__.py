"""One file for each verb: its signature is the command line, its docstring the help."""
