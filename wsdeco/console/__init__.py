"""The console: a page that connects to the handlers of an app. Nothing of it is loaded until somebody opens it."""
