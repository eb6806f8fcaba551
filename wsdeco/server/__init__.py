"""How `App.run` and `wsdeco run` serve an app.

- `launch`: what both call; it chooses between the three ways to serve.
- `foreground`: in the main thread, until a signal; `background`: in a thread, beside an event loop that runs already;
  `workers`: in several processes.
- `options` makes a server of the arguments, `serving` is that server, `listen` opens its sockets, and `banner` prints
  what it serves.
- Of the processes: `supervisor` starts, replaces and ends them; `loading` finds the app in each; `orphans` ends them
  with their parent; `cluster` and `nats_server` carry rooms between them.
"""
