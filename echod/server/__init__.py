"""What serves clients: listeners, workers, and the rules by which connections come and go."""
