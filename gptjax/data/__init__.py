"""Text, dialogues and human judgements, from files to the arrays a stage trains on."""
