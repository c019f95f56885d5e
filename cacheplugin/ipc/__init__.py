"""Messages between the processes of the program, and how those processes are started."""
