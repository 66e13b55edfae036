"""Known mistakes, planted one by one; the tests must catch each."""
