package main

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/jsimonetti/rtnetlink/v2/driver"
	"golang.org/x/sys/unix"
)

const (
	targetIface = "target"
	sourceIface = "source"
	targetBits  = 24
)

var (
	targetMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	sourceMAC = net.HardwareAddr{2, 0, 0, 0, 0, 2}
)

// A wire joins the two hosts. This process is on the target; all that there is
// of the other host is its end of the wire and a socket on it.
//
// The target has no route to the forged sources, so that it answers nothing. Where
// the rate counts, its kernel drops each probe as soon as packet sockets have seen
// it (reverse path filter): the less work it has, the more probes the generator
// gets through.
type wire struct {
	socket int // AF_PACKET, sends whole frames from the other host
	conn   *rtnetlink.Conn
	index  uint32 // of the target's interface
}

// newWire makes the other host and the wire to it.
func newWire() (*wire, error) {
	conn, err := rtnetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("opening netlink: %w", err)
	}
	w := &wire{socket: -1, conn: conn}
	if err := onThread(w.addSource); err != nil {
		w.close()
		return nil, fmt.Errorf("making the source host: %w", err)
	}
	if err := w.setUpTarget(); err != nil {
		w.close()
		return nil, fmt.Errorf("setting up the target host: %w", err)
	}
	return w, nil
}

func (w *wire) close() {
	w.conn.Close()
	if w.socket >= 0 {
		unix.Close(w.socket)
	}
}

// addSource moves the calling thread to a new network namespace and makes both
// ends of the wire. The namespace lives on in the socket.
func (w *wire) addSource() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("making a network namespace: %w", err)
	}
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer ns.Close()
	source := &rtnetlink.LinkMessage{Attributes: &rtnetlink.LinkAttributes{
		Name:    sourceIface,
		Address: sourceMAC,
		NetNS:   rtnetlink.NetNSForFD(uint32(ns.Fd())),
	}}
	target := &rtnetlink.LinkMessage{Attributes: &rtnetlink.LinkAttributes{
		Name:    targetIface,
		Address: targetMAC,
		Info:    &rtnetlink.LinkInfo{Kind: "veth", Data: &driver.Veth{PeerInfo: source}},
	}}
	if err := w.conn.Link.New(target); err != nil {
		return fmt.Errorf("adding a veth pair: %w", err)
	}
	conn, err := rtnetlink.Dial(nil)
	if err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	defer conn.Close()
	index, err := bringUp(conn, sourceIface)
	if err != nil {
		return err
	}
	w.socket, err = packetSocket(index)
	return err
}

// bringUp switches an interface on and returns its index. The interface is in
// the namespace of the calling thread and of conn.
func bringUp(conn *rtnetlink.Conn, iface string) (uint32, error) {
	link, err := net.InterfaceByName(iface)
	if err != nil {
		return 0, fmt.Errorf("interface %s: %w", iface, err)
	}
	up := &rtnetlink.LinkMessage{Index: uint32(link.Index), Flags: unix.IFF_UP, Change: unix.IFF_UP}
	if err := conn.Link.Set(up); err != nil {
		return 0, fmt.Errorf("bringing up %s: %w", iface, err)
	}
	return up.Index, nil
}

// packetSocket returns a socket that sends whole frames out of an interface,
// past its queue, and receives nothing.
func packetSocket(index uint32) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening a packet socket: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: int(index)}),
	)
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("binding a packet socket: %w", err)
	}
	return fd, nil
}

// filterForged says whether the target drops what comes from sources that it has
// no route to.
func (w *wire) filterForged(drop bool) error {
	mode := "0"
	if drop {
		mode = "1"
	}
	for _, name := range []string{"all", targetIface} {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/rp_filter", []byte(mode), 0); err != nil {
			return err
		}
	}
	return nil
}

// setUpTarget gives the target its address.
func (w *wire) setUpTarget() error {
	if _, err := bringUp(w.conn, "lo"); err != nil {
		return err
	}
	var err error
	if w.index, err = bringUp(w.conn, targetIface); err != nil {
		return err
	}
	address := &rtnetlink.AddressMessage{
		Family:       unix.AF_INET,
		PrefixLength: targetBits,
		Index:        w.index,
		Attributes:   &rtnetlink.AddressAttributes{Address: targetAddr[:], Local: targetAddr[:]},
	}
	if err := w.conn.Address.New(address); err != nil {
		return fmt.Errorf("adding an address: %w", err)
	}
	return nil
}

// received returns how many packets have arrived on the target's interface.
func (w *wire) received() (uint64, error) {
	link, err := w.conn.Link.Get(w.index)
	if err != nil {
		return 0, fmt.Errorf("reading the target's counters: %w", err)
	}
	if link.Attributes == nil || link.Attributes.Stats64 == nil {
		return 0, errors.New("reading the target's counters: the kernel gave none")
	}
	return link.Attributes.Stats64.RXPackets, nil
}
