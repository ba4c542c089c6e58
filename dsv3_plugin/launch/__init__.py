"""Starting the processes of a run: on this machine, or as tasks of a cluster's launcher."""
