package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A hostView is what the kernel says of this host's interfaces and addresses
// at one moment. It is immutable.
type hostView struct {
	links     map[int]link // by interface index
	addresses map[netip.Addr]struct{}
	shared    map[netip.Addr]struct{} // broadcast addresses and multicast groups
	forwards6 bool                    // the host may send on IPv6 packets of others
}

// newHostView returns the view of a host without interfaces. Every host is in
// some groups (RFC 1112, section 4; RFC 4291, section 2.7.1) and takes what is
// for all.
func newHostView() *hostView {
	v := &hostView{
		links:     make(map[int]link),
		addresses: make(map[netip.Addr]struct{}),
		shared:    map[netip.Addr]struct{}{broadcast4: {}},
	}
	for _, group := range []string{"224.0.0.1", "ff01::1", "ff02::1"} {
		v.shared[netip.MustParseAddr(group)] = struct{}{}
	}
	return v
}

// A link is a network interface.
type link struct {
	name     string
	up       bool // by its administrator; the cable may be out
	loopback bool

	// member says that the interface belongs to a bridge, bond or team: its
	// frames come again from the master. A VRF's do not.
	member bool

	addrs []netip.Addr // its own, as the kernel lists them, without zones
}

// isLocal reports whether a packet that arrived on l is for this host rather
// than to be forwarded. Like Linux it takes an address of any interface on any
// other, except loopback addresses, which it takes on loopback interfaces only.
// Networks that a route makes local (AnyIP) it does not know: on a router the
// routes are too many to read.
func (v *hostView) isLocal(addr netip.Addr, l link) bool {
	if addr.IsLoopback() {
		return l.loopback
	}
	_, ok := v.addresses[addr]
	return ok
}

// receivesAsOneOfMany reports whether the host takes datagrams to addr, which is
// a broadcast address or a multicast group that no program has to join.
func (v *hostView) receivesAsOneOfMany(addr netip.Addr) bool {
	_, ok := v.shared[addr]
	return ok
}

// isMany reports whether addr stands for many hosts.
func (v *hostView) isMany(addr netip.Addr) bool {
	return addr.IsMulticast() || v.receivesAsOneOfMany(addr)
}

// originates reports whether a packet that leaves from addr is surely this
// host's own. Of IPv4 packets to be sent on, Linux drops those that claim to be,
// in fib_validate_source; of IPv6 packets it does not.
func (v *hostView) originates(addr netip.Addr) bool { return addr.Is4() || !v.forwards6 }

// inOrder returns the interfaces as the kernel numbers them.
func (v *hostView) inOrder() []link {
	links := make([]link, 0, len(v.links))
	for _, index := range slices.Sorted(maps.Keys(v.links)) {
		links = append(links, v.links[index])
	}
	return links
}

// String lists the interfaces: "lo (up), eth0 (down)".
func (v *hostView) String() string {
	if len(v.links) == 0 {
		return "no interfaces"
	}
	var b strings.Builder
	for i, l := range v.inOrder() {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(l.name)
		if l.up {
			b.WriteString(" (up)")
		} else {
			b.WriteString(" (down)")
		}
	}
	return b.String()
}

// A hostWatcher reads host views and notices when they are out of date.
//
// A change is only a reason to read everything again, never itself applied:
// that is the one path which is right also after the kernel has dropped
// notices, and on a large host it takes a few milliseconds.
type hostWatcher struct {
	tables  *dumper
	notices *netlink.Conn
}

// watchHost subscribes to changes in the network namespace of this thread, so
// that none is lost between a view and the first wait.
func watchHost() (*hostWatcher, error) {
	notices, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{
		Groups: unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR |
			1<<(unix.RTNLGRP_IPV6_NETCONF-1),
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to interface changes: %w", err)
	}
	tables, err := newDumper(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(err, notices.Close())
	}
	return &hostWatcher{tables: tables, notices: notices}, nil
}

func (w *hostWatcher) close() error {
	return errors.Join(w.tables.close(), w.notices.Close())
}

// wait returns nil when something may have changed since the last call. When
// ctx ends it returns that reason.
func (w *hostWatcher) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = w.notices.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err := w.notices.Receive()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, unix.ENOBUFS): // notices were dropped: something has changed
		return nil
	case err != nil:
		return fmt.Errorf("wait for interface changes: %w", err)
	}
	return nil
}

// view reads the interfaces and addresses as they are now.
func (w *hostWatcher) view() (*hostView, error) {
	v := newHostView()
	if err := w.each(unix.RTM_GETLINK, unix.SizeofIfInfomsg, v.addLink); err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	if err := w.each(unix.RTM_GETADDR, unix.SizeofIfAddrmsg, v.addAddress); err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return v, nil
}

// each calls add with the fixed part and the attributes of each row of a table.
func (w *hostWatcher) each(kind netlink.HeaderType, fixed int, add func([]byte, *netlink.AttributeDecoder) error) error {
	answers, err := w.tables.dump(kind, make([]byte, fixed)) // zero: all families, all interfaces
	if err != nil {
		return err
	}
	for _, m := range answers {
		if len(m.Data) < fixed {
			return fmt.Errorf("an answer of %d bytes, shorter than its header", len(m.Data))
		}
		attributes, err := netlink.NewAttributeDecoder(m.Data[fixed:])
		if err != nil {
			return err
		}
		if err := add(m.Data[:fixed], attributes); err != nil {
			return err
		}
	}
	return nil
}

// addLink takes one struct ifinfomsg.
func (v *hostView) addLink(info []byte, attributes *netlink.AttributeDecoder) error {
	index := int(int32(binary.NativeEndian.Uint32(info[4:])))
	flags := binary.NativeEndian.Uint32(info[8:])
	l := link{up: flags&unix.IFF_UP != 0, loopback: flags&unix.IFF_LOOPBACK != 0}
	var master uint32
	var masterKind string
	for attributes.Next() {
		switch attributes.Type() {
		case unix.IFLA_IFNAME:
			l.name = attributes.String()
		case unix.IFLA_MASTER:
			master = attributes.Uint32()
		case unix.IFLA_AF_SPEC:
			attributes.Nested(v.addFamilies)
		case unix.IFLA_LINKINFO:
			attributes.Nested(func(nested *netlink.AttributeDecoder) error {
				for nested.Next() {
					if nested.Type() == unix.IFLA_INFO_SLAVE_KIND {
						masterKind = nested.String()
					}
				}
				return nil
			})
		}
	}
	l.member = master != 0 && masterKind != "vrf"
	v.links[index] = l
	return attributes.Err()
}

// addFamilies takes what a link's address families say of it.
func (v *hostView) addFamilies(families *netlink.AttributeDecoder) error {
	const forwarding = 0 // DEVCONF_FORWARDING among the 32-bit values of ipv6_devconf
	for families.Next() {
		if families.Type() != unix.AF_INET6 {
			continue
		}
		families.Nested(func(attributes *netlink.AttributeDecoder) error {
			for attributes.Next() {
				if conf := attributes.Bytes(); attributes.Type() == unix.IFLA_INET6_CONF && len(conf) >= 4*(forwarding+1) {
					v.forwards6 = v.forwards6 || binary.NativeEndian.Uint32(conf[4*forwarding:]) != 0
				}
			}
			return nil
		})
	}
	return nil
}

// addAddress takes one struct ifaddrmsg.
func (v *hostView) addAddress(info []byte, attributes *netlink.AttributeDecoder) error {
	var local, address netip.Addr
	for attributes.Next() {
		switch attributes.Type() {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(attributes.Bytes())
		case unix.IFA_ADDRESS: // on a point-to-point link the peer's, if there is a local one
			address, _ = netip.AddrFromSlice(attributes.Bytes())
		case unix.IFA_BROADCAST: // as the administrator set it
			if broadcast, ok := netip.AddrFromSlice(attributes.Bytes()); ok {
				v.shared[broadcast] = struct{}{}
			}
		}
	}
	if local.IsValid() {
		address = local
	}
	if address.IsValid() {
		v.addresses[address] = struct{}{}
		v.addShared(address, int(info[1]))
		index := int(binary.NativeEndian.Uint32(info[4:]))
		if l, known := v.links[index]; known {
			l.addrs = append(l.addrs, address)
			v.links[index] = l
		}
	}
	return attributes.Err()
}

// addShared adds what an address of our own makes us share with others: for
// IPv4 the broadcast address of its network, as Linux does in fib_add_ifaddr;
// for IPv6 its solicited-node group (RFC 4291, section 2.7.1).
func (v *hostView) addShared(address netip.Addr, prefixLength int) {
	const pointToPoint = 31 // RFC 3021: without broadcast
	if address.Is6() {
		group := netip.MustParseAddr("ff02::1:ff00:0").As16()
		own := address.As16()
		copy(group[13:], own[13:])
		v.shared[netip.AddrFrom16(group)] = struct{}{}
		return
	}
	if prefixLength >= pointToPoint {
		return
	}
	last := address.As4()
	hostBits := uint32(1)<<(32-prefixLength) - 1
	binary.BigEndian.PutUint32(last[:], binary.BigEndian.Uint32(last[:])|hostBits)
	v.shared[netip.AddrFrom4(last)] = struct{}{}
}
