"""The methods: one file for each paper or classic method, found through `core.catalog`."""
