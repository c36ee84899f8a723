"""Model families, one file each: configuration and forward on one screen."""
