"""The commands of the command line: each module has `main(argv)`, which returns the exit status."""
