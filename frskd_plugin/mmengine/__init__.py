"""mmengine adapter: registration, hooks, seeding and checkpoints. Importing it registers the components."""

from frskd_plugin.mmengine.registration import register_all, warn_about_mixed_stacks

register_all()
warn_about_mixed_stacks()
