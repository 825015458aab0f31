package guard

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// hostTables are the kernel's tables of this host's addresses and routes.
//
// A notice of a change is only a reason to read everything again, never itself
// applied: that is the one path which is right also after the kernel has
// dropped notices.
type hostTables struct {
	tables  *dumper
	notices *netlink.Conn
}

// openHostTables subscribes to changes in the network namespace of this thread,
// so that none is lost between a reading and the first wait.
func openHostTables() (*hostTables, error) {
	notices, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{
		// Not links: what goes with one that goes down may stay for a while.
		Groups: unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR |
			unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE | 1<<(unix.RTNLGRP_NEXTHOP-1),
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to changes of addresses and routes: %w", err)
	}
	tables, err := newDumper(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(err, notices.Close())
	}
	return &hostTables{tables: tables, notices: notices}, nil
}

func (h *hostTables) close() error { return errors.Join(h.tables.close(), h.notices.Close()) }

// await returns when it is time to read again: pause after the first notice of
// a change, or after resyncInterval without one. When ctx ends it returns early.
// An error says that notices may not come; it takes a second at least.
func (h *hostTables) await(ctx context.Context, pause time.Duration) error {
	if err := h.receive(ctx, resyncInterval); err != nil {
		sleep(ctx, max(pause, pollInterval))
		return err
	}
	until := time.Now().Add(pause)
	for ctx.Err() == nil {
		left := time.Until(until)
		if left <= 0 {
			return nil
		}
		if err := h.receive(ctx, left); err != nil {
			return err
		}
	}
	return nil
}

// receive returns after a notice, when patience is over, or when ctx ends.
func (h *hostTables) receive(ctx context.Context, patience time.Duration) error {
	if err := h.notices.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = h.notices.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err := h.notices.Receive()
	switch {
	case ctx.Err() != nil,
		errors.Is(err, os.ErrDeadlineExceeded),
		errors.Is(err, unix.ENOBUFS): // notices were dropped: something has changed
		return nil
	case err != nil:
		return fmt.Errorf("wait for changes of addresses and routes: %w", err)
	}
	return nil
}

// read reads own addresses, broadcast addresses and gateways as they are now.
func (h *hostTables) read() ([]Entry, error) {
	r := hostReading{why: make(map[netip.Prefix]string)}
	for _, table := range []struct {
		name  string
		kind  netlink.HeaderType
		fixed int
		row   rowFunc
	}{
		{"addresses", unix.RTM_GETADDR, unix.SizeofIfAddrmsg, r.addAddress},
		{"routes", unix.RTM_GETROUTE, unix.SizeofRtMsg, r.addRoute},
		{"next hops", unix.RTM_GETNEXTHOP, unix.SizeofNhmsg, r.addNextHop},
	} {
		// All zero asks for all families, interfaces and tables.
		err := h.tables.dump(table.kind, make([]byte, table.fixed), table.fixed, table.row)
		if table.kind == unix.RTM_GETNEXTHOP && errors.Is(err, unix.EOPNOTSUPP) {
			continue // before Linux 5.3 all next hops are in the routes
		}
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", table.name, err)
		}
	}
	return r.entries, nil
}

// A hostReading gathers what a reading of the host's tables finds.
type hostReading struct {
	entries []Entry
	why     map[netip.Prefix]string // of entries: a thousand routes have one gateway
}

// add takes a prefix unless it is there or overlaps what is spared on all hosts.
// That leaves out routers' link-local addresses, of which a neighbour could
// announce any number, and a route that makes everything local.
func (r *hostReading) add(p netip.Prefix, why string) {
	p = canonical(p)
	if _, known := r.why[p]; known || !p.IsValid() {
		return
	}
	if _, fixed := fixedSet.overlapping(p); fixed {
		return
	}
	r.why[p] = why
	r.entries = append(r.entries, Entry{p, why})
}

// addBytes takes an address in network order.
func (r *hostReading) addBytes(b []byte, why string) {
	if addr, ok := netip.AddrFromSlice(b); ok {
		r.add(hostPrefix(addr), why)
	}
}

// addAddress takes one struct ifaddrmsg. An address counts in each state, also
// while it is tentative or deprecated.
func (r *hostReading) addAddress(message []byte, attributes *netlink.AttributeDecoder) error {
	var local, address netip.Addr
	for attributes.Next() {
		switch attributes.Type() {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(attributes.Bytes())
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(attributes.Bytes())
		case unix.IFA_BROADCAST:
			r.addBytes(attributes.Bytes(), whyBroadcast)
		}
	}
	if local.IsValid() && local != address {
		// On a point-to-point link routes need not name the other end.
		r.add(hostPrefix(local), whyOwn)
		r.add(hostPrefix(address), whyGateway)
	} else {
		r.add(hostPrefix(address), whyOwn)
	}
	r.addBroadcasts(netip.PrefixFrom(address, int(message[1])))
	return nil
}

// addBroadcasts takes the first and the last address of an own IPv4 network,
// both of which hosts have taken for broadcast. Networks of one or two
// addresses have none (RFC 3021).
func (r *hostReading) addBroadcasts(network netip.Prefix) {
	if !network.Addr().Is4() || !network.IsValid() || network.Bits() > 30 {
		return
	}
	first := network.Masked().Addr().As4()
	last := binary.BigEndian.Uint32(first[:]) | ^uint32(0)>>network.Bits()
	r.addBytes(first[:], whyBroadcast)
	r.addBytes(binary.BigEndian.AppendUint32(nil, last), whyBroadcast)
}

// addRoute takes one struct rtmsg.
func (r *hostReading) addRoute(message []byte, attributes *netlink.AttributeDecoder) error {
	family, bits, table, kind := message[0], int(message[1]), message[4], message[7]
	if family != unix.AF_INET && family != unix.AF_INET6 && family != unix.AF_MPLS {
		return nil // multicast routing
	}
	// A route can make a whole network local. In other tables that is how
	// transparent proxies catch the traffic of others, often 0.0.0.0/0.
	own := table == unix.RT_TABLE_LOCAL && (kind == unix.RTN_LOCAL || kind == unix.RTN_ANYCAST)
	for attributes.Next() {
		switch {
		case attributes.Type() == unix.RTA_MULTIPATH:
			if err := r.addHops(attributes.Bytes()); err != nil {
				return err
			}
		case attributes.Type() == unix.RTA_DST && own:
			if addr, ok := netip.AddrFromSlice(attributes.Bytes()); ok {
				r.add(netip.PrefixFrom(addr, bits), whyOwn)
			}
		default:
			r.addHop(attributes)
		}
	}
	return nil
}

// addHop takes an attribute of a route or of one of its ways.
func (r *hostReading) addHop(attribute *netlink.AttributeDecoder) {
	switch attribute.Type() {
	case unix.RTA_GATEWAY:
		r.addBytes(attribute.Bytes(), whyGateway)
	case unix.RTA_VIA: // of another family than the route's: struct rtvia
		if via := attribute.Bytes(); len(via) > 2 {
			r.addBytes(via[2:], whyGateway)
		}
	}
}

// addHops takes the ways of a multipath route: struct rtnexthop, each with its
// attributes.
func (r *hostReading) addHops(hops []byte) error {
	for len(hops) > 0 {
		if len(hops) < unix.SizeofRtNexthop {
			return fmt.Errorf("a way of %d bytes, shorter than its header", len(hops))
		}
		length := int(binary.NativeEndian.Uint16(hops))
		if length < unix.SizeofRtNexthop || length > len(hops) {
			return fmt.Errorf("a way says it has %d of %d bytes", length, len(hops))
		}
		attributes, err := netlink.NewAttributeDecoder(hops[unix.SizeofRtNexthop:length])
		if err != nil {
			return err
		}
		for attributes.Next() {
			r.addHop(attributes)
		}
		if err := attributes.Err(); err != nil {
			return err
		}
		hops = hops[min((length+3)&^3, len(hops)):]
	}
	return nil
}

// addNextHop takes one struct nhmsg, a next hop that routes refer to.
func (r *hostReading) addNextHop(_ []byte, attributes *netlink.AttributeDecoder) error {
	for attributes.Next() {
		if attributes.Type() == unix.NHA_GATEWAY {
			r.addBytes(attributes.Bytes(), whyGateway)
		}
	}
	return nil
}
