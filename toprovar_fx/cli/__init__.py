"""The command line: `app` holds the typer commands, every other module works and is tested without typer."""
