"""IXCP: the control plane. An ordinary Linux process that finds a NIC's queues, steers frames to
AF_XDP sockets, and keeps the dataplane told of what the kernel knows.

The order of calls, as a runtime makes them (each name lives in the module given with it; nothing
is imported here, so that a part can be used without the others)::

    nic = Nic.find("eth1")                              # nic: facts; UnknownInterface
    nic.check_frame(frame_bytes=2048)                   # MtuTooLarge
    queues = [
        QueueConfig(queue=q, umem=address, umem_bytes=n, frame_shift=11, fill=addresses, ...)
        for q in nic.queues
    ]                                                   # xsk: UMEM memory must be MAP_SHARED;
                                                        # Umem.allocate() makes some
    steering = Steering.open()                          # xdp: loaded, not attached
    opened = open_queues(nic, steering, queues)         # nic: walks the ladder, attaches,
                                                        # binds, fills the XSKMAP
    print(opened.mode.value, opened.attempts)           # what it got, and why not better
    steering.sync_local(nic.ips)                        # which addresses a wildcard claim covers

    claims = Claims(steering, nic)                      # claims
    claims.claim(Proto.TCP, None, 7777)                 # from here on frames arrive
    ports = claims.reserve_outgoing(Proto.TCP, len(queues))

    pid = os.fork()                                     # a worker a shard:
    if pid == 0:
        steering.forget()                               # at once: it holds the XDP link too
        claims.forget()
        link = opened.sockets[i].link                   # struct ix_link *, for the shard
        ...                                             # run it; end with os._exit()

    mirror = NeighbourMirror(nic.ifindex, observer)     # neigh: the parent's loop polls
    mirror.start()                                      # mirror.fileno() and calls
    mirror.process()                                    # process(); resolve() asks the kernel
    mirror.resolve(IPv4Address("10.0.0.2"))

    mirror.close(); claims.close(); opened.close(); steering.close()

Sockets of a link that was killed with its worker stay open in the parent, so a new worker can be
forked onto them; frames of that queue are lost meanwhile unless `steering.set_socket(queue, None)`
gives them to the kernel. When the parent dies, by whatever signal, the kernel removes the XDP
link with its last descriptor: hence `forget()` in each child.

Everything raises `IxError` (errors) with a `cure`. Nothing here starts a thread.
"""
