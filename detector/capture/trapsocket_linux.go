package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
)

const (
	// trapBacklog is how many connections to a trap port may wait to be
	// accepted. The kernel drops, and the peer tries again.
	trapBacklog = 128

	// trapReceiveBuffer is the memory for datagrams that wait at a trap port,
	// in bytes. Only their headers matter, and a small buffer keeps a flood of
	// many ports from taking the memory that all sockets of the host share.
	trapReceiveBuffer = 32 << 10
)

// listenTrap returns a socket that takes what arrives for port, over IPv6 and
// IPv4 or, where the kernel has no IPv6, over IPv4 alone.
func listenTrap(proto detector.Proto, port uint16) (int, error) {
	fd, err := bindTrap(unix.AF_INET6, proto, port)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		fd, err = bindTrap(unix.AF_INET, proto, port)
	}
	if errors.Is(err, unix.EACCES) {
		err = fmt.Errorf("%w; run as root or with CAP_NET_BIND_SERVICE", err)
	}
	return fd, err
}

func bindTrap(family int, proto detector.Proto, port uint16) (int, error) {
	everywhere := netip.IPv4Unspecified()
	if family == unix.AF_INET6 {
		everywhere = netip.IPv6Unspecified()
	}
	return openTrap(sockaddr(everywhere, port), proto, trapOptions(family, proto), trapBacklog)
}

// openTrap returns a socket with options that is bound to address and, if it
// is for TCP, listens with a backlog.
func openTrap(address unix.Sockaddr, proto detector.Proto, options []socketOption, backlog int) (int, error) {
	if proto == detector.UDP {
		return openBound(address, unix.SOCK_DGRAM, 0, options)
	}
	fd, err := openBound(address, unix.SOCK_STREAM, 0, options)
	if err != nil {
		return -1, err
	}
	if err := unix.Listen(fd, backlog); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("listen: %w", err)
	}
	return fd, nil
}

func openBound(address unix.Sockaddr, kind, protocol int, options []socketOption) (_ int, err error) {
	family := unix.AF_INET
	if _, ok := address.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return -1, fmt.Errorf("open a socket: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return -1, fmt.Errorf("set socket option %d of level %d: %w", o.name, o.level, err)
		}
	}
	if err := unix.Bind(fd, address); err != nil {
		return -1, fmt.Errorf("bind: %w", err)
	}
	return fd, nil
}

// sockaddr is the opposite of addrPort, without zones.
func sockaddr(addr netip.Addr, port uint16) unix.Sockaddr {
	if addr.Is4() {
		return &unix.SockaddrInet4{Addr: addr.As4(), Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: addr.As16(), Port: int(port)}
}

type socketOption struct{ level, name, value int }

func trapOptions(family int, proto detector.Proto) []socketOption {
	var options []socketOption
	if family == unix.AF_INET6 {
		options = append(options, socketOption{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0})
	}
	if proto == detector.TCP {
		// So that connections of the last minute do not keep the port. It never
		// takes a port from a listener; for UDP it would.
		return append(options, socketOption{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1})
	}
	if family == unix.AF_INET6 {
		options = append(options, socketOption{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1})
	}
	return append(options,
		socketOption{unix.IPPROTO_IP, unix.IP_PKTINFO, 1}, // also on an IPv6 socket, for IPv4
		socketOption{unix.SOL_SOCKET, unix.SO_RCVBUF, trapReceiveBuffer},
		socketOption{unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1},
	)
}

// addrPort returns an address of the kernel's, with the zone that a link-local
// address has. Any socket will do for looking that up.
func addrPort(sa unix.Sockaddr, socket int) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		addr := netip.AddrFrom16(sa.Addr).Unmap()
		if sa.ZoneId != 0 {
			addr = addr.WithZone(interfaceName(socket, sa.ZoneId))
		}
		return netip.AddrPortFrom(addr, uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// interfaceName returns the name of the interface with an index, or "" if it is
// gone.
func interfaceName(socket int, index uint32) string {
	request, err := unix.NewIfreq("")
	if err != nil {
		return ""
	}
	request.SetUint32(index)
	if err := unix.IoctlIfreq(socket, unix.SIOCGIFNAME, request); err != nil {
		return ""
	}
	return request.Name()
}

// packetInfo is what the kernel says of a datagram.
type packetInfo struct {
	addr  netip.Addr // its target, without a zone
	port  uint16     // its target, at a socket for many ports; else 0
	index uint32     // of the interface that it came in by
	many  bool       // it was sent to a broadcast or multicast address
	lost  uint32     // datagrams that found the socket's buffer full, since it was opened
}

// parsePacketInfo reads the kernel's control messages: IP_PKTINFO for IPv4,
// IPV6_PKTINFO for IPv6, and SO_RXQ_OVFL once there are losses. Over IPv4 an
// IPv6 socket gets both of the first. IP_ORIGDSTADDR and IPV6_ORIGDSTADDR have
// the port. It reports whether there is a target.
func parsePacketInfo(control []byte) (info packetInfo, ok bool) {
	for len(control) > 0 {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			break
		}
		control = rest
		switch {
		case header.Level == unix.SOL_SOCKET && header.Type == unix.SO_RXQ_OVFL && len(data) >= 4:
			info.lost = binary.NativeEndian.Uint32(data)
		case header.Level == unix.IPPROTO_IP && header.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			// Interface, the address of ours that it concerns, its target.
			info.index = binary.NativeEndian.Uint32(data)
			info.addr = netip.AddrFrom4([4]byte(data[8:]))
			info.many = info.addr != netip.AddrFrom4([4]byte(data[4:]))
		case header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			target := netip.AddrFrom16([16]byte(data))
			if target.Is4In6() {
				continue
			}
			info.addr, info.index, info.many = target, binary.NativeEndian.Uint32(data[16:]), target.IsMulticast()
		case header.Level == unix.IPPROTO_IP && header.Type == unix.IP_ORIGDSTADDR && len(data) >= unix.SizeofSockaddrInet4,
			header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_ORIGDSTADDR && len(data) >= unix.SizeofSockaddrInet6:
			info.port = binary.BigEndian.Uint16(data[2:]) // both begin with the family, then this
		}
	}
	return info, info.addr.IsValid()
}

// from returns the control message that makes the target the source of an
// answer.
func (i *packetInfo) from() []byte {
	if i.addr.Is4() {
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: i.addr.As4()})
	}
	return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: i.addr.As16(), Ifindex: i.linkIndex()})
}

// linkIndex returns the interface that a link-local address means something on.
// Others are routed as they need to be.
func (i *packetInfo) linkIndex() uint32 {
	if i.addr.IsLinkLocalUnicast() {
		return i.index
	}
	return 0
}

// spareDescriptors are for connections and for everything else in the process.
const spareDescriptors = maxLingerers + 256

// raiseDescriptorLimit lets the process have n descriptors.
func raiseDescriptorLimit(n int) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read the limit on open files: %w", err)
	}
	need := uint64(n)
	if limit.Cur >= need {
		return nil
	}
	if limit.Max < need {
		return fmt.Errorf("%d descriptors are needed, the hard limit on open files (RLIMIT_NOFILE) is %d; "+
			"raise it (LimitNOFILE=%d in the systemd unit, or ulimit -Hn) or choose fewer trap ports", need, limit.Max, need)
	}
	limit.Cur = need
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raise the limit on open files to %d: %w", need, err)
	}
	return nil
}

// warnOfEphemeralPorts tells if outgoing connections and queries are left with
// less than half of the ports that the kernel takes for them.
func (t *Traps) warnOfEphemeralPorts() {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return
	}
	var r detector.PortRange
	if _, err := fmt.Sscan(string(text), &r.First, &r.Last); err != nil {
		return
	}
	all := detector.NewPortSet(r).Len()
	for _, held := range []struct {
		proto detector.Proto
		ports detector.PortSet
	}{{detector.TCP, t.tcp}, {detector.UDP, t.udp}} {
		left := all - overlap(held.ports, r)
		if 2*left >= all {
			continue
		}
		t.log.WithFields(logrus.Fields{"proto": held.proto, "range": fmt.Sprintf("%d-%d", r.First, r.Last), "left": left}).
			Warn("trap ports take most of the ports that this host's own connections start from; leave out the range")
	}
}

// overlap returns how many ports of s are in r.
func overlap(s detector.PortSet, r detector.PortRange) int {
	n := 0
	for _, of := range s.Ranges() {
		n += max(0, int(min(of.Last, r.Last))-int(max(of.First, r.First))+1)
	}
	return n
}
