"""GQSA: the method, the codes it chooses, and the two stages that train them."""
