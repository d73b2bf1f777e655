"""Small licence-clean data the quickstart needs; see LICENSES.md."""
