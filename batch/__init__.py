"""Headless batches: a checked table in, images and a table of likeness out, on one ComfyUI server or many.

`likeness batch run` does, in this order, and each step is a module:

    table, people   what the user wrote, line by line           -> cells
    graph, schema   an API workflow, and what its inputs take   -> addresses, values
    rows, check     everything at fault before anything runs    -> rows, problems
    journal         what is to do, was sent and is done         (SQLite; survives kill -9)
    client, local, ray_workers   servers that run graphs        (one protocol: `workers.Worker`)
    engine, failures             two rows in flight per server, repeated where that helps
    results, judge, manifest, report                            files, likeness, tables, sheets

docs/batches.md is the page for users.
"""
