"""`ixnet memcached`: the command line of the memcached server, with memcached's own letters."""

from __future__ import annotations

from typing import Annotated

import typer


def memcached(
    interface: Annotated[
        str, typer.Option("--interface", "-i", help="The interface, in this network namespace.")
    ],
    port: Annotated[int, typer.Option("-p", "--port", help="TCP port; 0: none.")] = 11211,
    udp_port: Annotated[int, typer.Option("-U", "--udp-port", help="UDP port; 0: none.")] = 0,
    memory_mb: Annotated[
        int, typer.Option("-m", "--memory-limit", help="Memory for items, megabytes.")
    ] = 64,
    conns: Annotated[int, typer.Option("-c", "--conn-limit", help="Connections at a time.")] = 1024,
    threads: Annotated[
        int | None,
        typer.Option("-t", "--threads", help="NIC queues, a worker each (all queues)."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="W", help="Fewer workers than queues, as ixnet run's.")
    ] = None,
    item_size: Annotated[
        str, typer.Option("-I", "--max-item-size", help="The largest item: 512k, 1m, ...")
    ] = "1m",
    listen: Annotated[
        str | None, typer.Option("-l", "--listen", help="The address to serve (every one).")
    ] = None,
    no_eviction: Annotated[
        bool, typer.Option("-M", "--disable-evictions", help="Errors when memory is full.")
    ] = False,
    verbose: Annotated[
        int, typer.Option("-v", "--verbose", count=True, help="Say more; -vv: more yet.")
    ] = 0,
    growth_factor: Annotated[
        float, typer.Option("-f", "--slab-growth-factor", help="From one slab class to the next.")
    ] = 1.25,
    chunk_min: Annotated[
        int, typer.Option("-n", "--slab-min-size", help="Bytes of key and value in the smallest.")
    ] = 48,
    large_pages: Annotated[
        bool, typer.Option("-L", "--enable-largepages", help="The store on huge pages.")
    ] = False,
    backlog: Annotated[
        int, typer.Option("-b", "--listen-backlog", help="Connections that wait to be accepted.")
    ] = 1024,
    protocol: Annotated[
        str, typer.Option("-B", "--protocol", help="auto, ascii or binary.")
    ] = "auto",
    no_cas: Annotated[bool, typer.Option("-C", "--disable-cas", help="No CAS ids.")] = False,
    no_flush: Annotated[
        bool, typer.Option("-F", "--disable-flush-all", help="flush_all is refused.")
    ] = False,
    shutdown_command: Annotated[
        bool, typer.Option("-A", "--enable-shutdown", help="The command shutdown ends the server.")
    ] = False,
    no_dump: Annotated[
        bool, typer.Option("-X", "--disable-dumping", help="No stats cachedump, no metadump.")
    ] = False,
    no_watch: Annotated[
        bool, typer.Option("-W", "--disable-watch", help="The command watch is refused.")
    ] = False,
    user: Annotated[
        str | None,
        typer.Option("-u", "--user", metavar="USER[:GROUP]", help="Who the workers become."),
    ] = None,
    options: Annotated[
        str, typer.Option("-o", "--extended", help="memcached's options: name,name=value,...")
    ] = "",
    cores: Annotated[
        str | None, typer.Option(metavar="LIST", help="Cores of the workers, as ixnet run's.")
    ] = None,
    mode: Annotated[
        str, typer.Option(metavar="MODE", help="AF_XDP mode: auto, zerocopy, copy, generic.")
    ] = "auto",
    busy_poll: Annotated[
        bool, typer.Option("--busy-poll/--block", help="Never sleep, or when there is no work.")
    ] = False,
    spin_us: Annotated[
        int | None, typer.Option(metavar="US", help="Idle time before sleeping.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(metavar="N", help="UMEM frames a queue (by the memory there is).")
    ] = None,
    placement: Annotated[
        str, typer.Option(metavar="WHERE", help="Where the dataplane runs: inline, dune.")
    ] = "inline",
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The instance's name, for stat.")
    ] = None,
) -> None:
    """Serve memcached's protocols on an interface's queues.

    Letters mean what they mean to memcached. Other options are those of ixnet run.
    """
    from ixnet.cli import _complain, _privileges, _say, errors
    from ixnet.memcached import MemcachedConfig, parse_options, serve

    with errors():
        config = MemcachedConfig(
            memory_mb=memory_mb, item_size=item_size, port=port, udp_port=udp_port, conns=conns,
            listen=listen, growth_factor=growth_factor, chunk_min=chunk_min, backlog=backlog,
            verbose=verbose, no_eviction=no_eviction, no_cas=no_cas, no_flush=no_flush,
            large_pages=large_pages, shutdown_command=shutdown_command, no_dump=no_dump,
            no_watch=no_watch, protocol=protocol, options=parse_options(options),
        )  # fmt: skip
        status = serve(
            config, interface, threads, cores, _say, _complain,
            mode=mode, busy_poll=busy_poll, spin_us=spin_us, frames=frames, placement=placement,
            name=name, workers=workers, privileges=_privileges(user, keep=False),
        )  # fmt: skip
    raise typer.Exit(status)
