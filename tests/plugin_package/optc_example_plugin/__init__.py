"""What this package adds to optc. Only this module is imported before something of it is used."""

from importlib.resources import files

from optc.plugins import Plugin

plugin = Plugin(
    name="example",
    rules={"softsign": "optc_example_plugin.rules:softsign"},
    passes={"mean-pool": "optc_example_plugin.passes:MeanPool"},
    scripts={"drop-abs": "optc_example_plugin.scripts:drop_abs"},
    targets=files("optc_example_plugin").joinpath("targets.toml"),
    backends={"listing": "optc_example_plugin.backend:ListingBackend"},
    place={"softsign": "before:fuse", "drop-abs": "after:softsign"},
)
