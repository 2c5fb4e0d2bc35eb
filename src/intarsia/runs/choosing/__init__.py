"""The choice of a method for a folder of pictures, judged on held-out training pictures."""
