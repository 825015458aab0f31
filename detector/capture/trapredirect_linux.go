package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/detector/capture/tproxy"
)

const (
	// redirectBacklog is how many connections to all redirected ports may wait
	// to be accepted. The kernel takes net.core.somaxconn if that is lower.
	redirectBacklog = 4096

	// redirectReceiveBuffer is the memory for datagrams that wait at all
	// redirected ports of a family, in bytes. In a user namespace the kernel
	// takes net.core.rmem_max if that is lower.
	redirectReceiveBuffer = 1 << 20
)

// redirectAll takes all ports with a socket for each protocol and family.
func (t *Traps) redirectAll(tcp, udp detector.PortSet) error {
	if err := t.redirectTo(tcp, udp); errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w; run as root or with CAP_NET_ADMIN and CAP_NET_RAW", err)
	} else if err != nil {
		return fmt.Errorf("%w; it takes Linux 5.12 or later with nft_tproxy, nft_socket and nft_fib_inet", err)
	}
	t.tcp, t.udp = tcp, udp
	return nil
}

func (t *Traps) redirectTo(tcp, udp detector.PortSet) (err error) {
	var listeners []tproxy.Listener
	if tcp.Len() > 0 {
		if listeners, err = t.openRedirected(detector.TCP, listeners); err != nil {
			return err
		}
	}
	if udp.Len() > 0 {
		if listeners, err = t.openRedirected(detector.UDP, listeners); err != nil {
			return err
		}
		if t.sender, err = openSender(); err != nil {
			return err
		}
	}
	t.rules, err = tproxy.Redirect(tcp, udp, listeners)
	return err
}

var loopbacks = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// openRedirected opens sockets that can stand for all ports, one of each family,
// and adds them to listeners. They are bound to loopback, where no other host
// reaches them but by redirection.
func (t *Traps) openRedirected(proto detector.Proto, listeners []tproxy.Listener) ([]tproxy.Listener, error) {
	for _, loopback := range loopbacks {
		addr, err := t.openRedirectedAt(loopback, proto)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("%v on %v: %w", proto, loopback, err)
		}
		listeners = append(listeners, tproxy.Listener{Proto: proto, Addr: addr})
	}
	return listeners, nil
}

// openRedirectedAt opens a socket on a port of the kernel's choice.
func (t *Traps) openRedirectedAt(loopback netip.Addr, proto detector.Proto) (netip.AddrPort, error) {
	fd, err := openTrap(sockaddr(loopback, 0), proto, redirectOptions(loopback, proto), redirectBacklog)
	if err != nil {
		return netip.AddrPort{}, err
	}
	t.sockets = append(t.sockets, fd)
	if proto == detector.UDP {
		// Above net.core.rmem_max, where we may.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, redirectReceiveBuffer)
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("ask for the port: %w", err)
	}
	return addrPort(local, fd), t.poll(fd, kindOf(proto), anyPort)
}

func redirectOptions(addr netip.Addr, proto detector.Proto) []socketOption {
	options := []socketOption{transparent(addr)}
	switch {
	case proto == detector.TCP:
		return options
	case addr.Is6():
		options = append(options,
			socketOption{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1},
			socketOption{unix.IPPROTO_IPV6, unix.IPV6_RECVORIGDSTADDR, 1})
	default:
		options = append(options,
			socketOption{unix.IPPROTO_IP, unix.IP_PKTINFO, 1},
			socketOption{unix.IPPROTO_IP, unix.IP_RECVORIGDSTADDR, 1})
	}
	return append(options,
		socketOption{unix.SOL_SOCKET, unix.SO_RCVBUF, redirectReceiveBuffer},
		socketOption{unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1})
}

// transparent is the option without which the kernel redirects nothing to a
// socket.
func transparent(addr netip.Addr) socketOption {
	if addr.Is6() {
		return socketOption{unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT, 1}
	}
	return socketOption{unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1}
}

// A sender sends UDP datagrams from ports that it does not have, so that a
// service can have them at any moment. It has a raw socket for each family.
type sender struct{ ipv4, ipv6 int }

var noSender = sender{-1, -1}

// Addresses that no host has (RFC 7600, section 4.8; RFC 6666). A raw socket
// that is bound to one receives nothing.
var nowhere4, nowhere6 = netip.MustParseAddr("192.0.0.8"), netip.MustParseAddr("100::1")

// openSender opens the sockets, which needs CAP_NET_RAW.
func openSender() (s sender, err error) {
	s = noSender
	if s.ipv4, err = openRawUDP(nowhere4); err != nil {
		return s, err
	}
	if s.ipv6, err = openRawUDP(nowhere6); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return s, err
	}
	return s, nil
}

func openRawUDP(addr netip.Addr) (int, error) {
	fd, err := openBound(sockaddr(addr, 0), unix.SOCK_RAW, unix.IPPROTO_UDP, []socketOption{
		transparent(addr), {unix.SOL_SOCKET, unix.SO_PRIORITY, tproxy.Quiet},
	})
	if err != nil {
		return -1, fmt.Errorf("raw UDP: %w", err)
	}
	return fd, nil
}

// send sends data from a target and port that came with a datagram back to its
// source.
func (s *sender) send(from *packetInfo, to netip.AddrPort, data []byte) error {
	fd := s.ipv6
	if from.addr.Is4() {
		fd = s.ipv4
	}
	// An IPv6 socket takes a port here for a protocol.
	peer := sockaddr(to.Addr(), 0)
	if peer6, ok := peer.(*unix.SockaddrInet6); ok {
		peer6.ZoneId = from.linkIndex()
	}
	_, err := unix.SendmsgN(fd, bareDatagram(from, to, data), from.from(), peer, unix.MSG_DONTWAIT)
	return err
}

// udpHeaderLen is the length of a UDP header in bytes.
const udpHeaderLen = 8

// bareDatagram puts a UDP header in front of data (RFC 768).
func bareDatagram(from *packetInfo, to netip.AddrPort, data []byte) []byte {
	length := udpHeaderLen + len(data)
	datagram := make([]byte, udpHeaderLen, length)
	binary.BigEndian.PutUint16(datagram, from.port)
	binary.BigEndian.PutUint16(datagram[2:], to.Port())
	binary.BigEndian.PutUint16(datagram[4:], uint16(length))
	datagram = append(datagram, data...)
	n := network{source: from.addr, target: to.Addr().WithZone(""), next: unix.IPPROTO_UDP}
	checksum := ^fold(sum(n.pseudoSum(length), datagram))
	if checksum == 0 {
		checksum = 0xffff // zero stands for none
	}
	binary.BigEndian.PutUint16(datagram[6:], checksum)
	return datagram
}

func (s *sender) close() {
	for _, fd := range []int{s.ipv4, s.ipv6} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}
