"""Pictures and sounds besides text: frozen encoders, views of a picture, questions and answers."""
