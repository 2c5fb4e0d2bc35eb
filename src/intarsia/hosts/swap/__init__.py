"""What takes the place of layers: mixtures, more or fewer experts, students."""
