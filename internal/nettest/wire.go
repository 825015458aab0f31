package nettest

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// A Wire sends Ethernet frames from a host's interface, byte for byte as they
// are: nothing is checked, filled in or put in front.
type Wire struct{ fd int }

// Wire opens the host's interface for frames until the test ends.
func (h *Host) Wire(t testing.TB) *Wire {
	t.Helper()
	w := new(Wire)
	h.Do(t, func() {
		eth, err := net.InterfaceByName(h.Interface)
		must(t, err)
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		t.Cleanup(func() { unix.Close(w.fd) })
		must(t, unix.Bind(w.fd, &unix.SockaddrLinklayer{Ifindex: eth.Index}))
	})
	return w
}

// Send sends a frame, which starts with the destination's hardware address and
// ends before the checksum.
func (w *Wire) Send(t testing.TB, frame []byte) {
	t.Helper()
	_, err := unix.Write(w.fd, frame)
	must(t, err)
}

// HardwareAddr returns the address of the host's Ethernet interface.
func (h *Host) HardwareAddr(t testing.TB) (addr net.HardwareAddr) {
	t.Helper()
	h.Do(t, func() {
		eth, err := net.InterfaceByName(h.Interface)
		must(t, err)
		addr = eth.HardwareAddr
	})
	return addr
}
