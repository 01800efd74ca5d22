"""The commands of `vit`, one module for each; its function has the command's name."""
