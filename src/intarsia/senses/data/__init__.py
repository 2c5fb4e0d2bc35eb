"""Pictures and sounds beside text: frozen encoders, views of a picture, questions with answers."""
