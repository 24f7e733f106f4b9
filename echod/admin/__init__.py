"""What answers questions about the running daemon: HTTP on the admin socket and on `admin.http`."""
