"""Where tests start processes of their own: from one that has imported what they need, so that it takes no time."""

import multiprocessing

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["asyncpg", "tests.processes.server", "tests.stores.writer"])
