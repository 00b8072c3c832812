"""The command line: one file for each verb, imported only when its verb is called."""
