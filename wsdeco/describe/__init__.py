"""The AsyncAPI document of an app, in JSON. Nothing of it is loaded until somebody asks for one."""
