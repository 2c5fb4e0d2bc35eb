"""Replace layers of a model: mixtures, more or fewer experts, packed layers, students."""
