"""Text generation as Gymnasium environments."""
