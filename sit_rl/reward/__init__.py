"""The distribution reward and the advantages made from it."""
