package capture

import (
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
)

// netlinkPatience bounds a dump. The kernel answers at once; this is for a
// kernel that does not, so that capture cannot hang on it.
const netlinkPatience = 2 * time.Second

// A dumper reads whole tables from the kernel. It is safe for concurrent use.
// After a failure it opens its socket anew in whichever thread asks next, so
// the process must stay in one network namespace.
type dumper struct {
	family int

	mu     sync.Mutex
	conn   *netlink.Conn // nil after a failure
	closed bool
}

// newDumper opens a netlink socket in the network namespace of this thread.
func newDumper(family int) (*dumper, error) {
	d := &dumper{family: family}
	return d, d.dialLocked()
}

func (d *dumper) dialLocked() error {
	conn, err := netlink.Dial(d.family, nil)
	if err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	d.conn = conn
	return nil
}

// dump returns the kernel's answers to a request for a table, or [os.ErrClosed]
// after close.
func (d *dumper) dump(kind netlink.HeaderType, request []byte) ([]netlink.Message, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, os.ErrClosed
	}
	if d.conn == nil {
		if err := d.dialLocked(); err != nil {
			return nil, err
		}
	}
	answers, err := d.executeLocked(kind, request)
	if err != nil {
		// What is left of the answers stays in this socket, so leave it.
		_ = d.hangUpLocked()
		return nil, err
	}
	return answers, nil
}

func (d *dumper) executeLocked(kind netlink.HeaderType, request []byte) ([]netlink.Message, error) {
	if err := d.conn.SetDeadline(time.Now().Add(netlinkPatience)); err != nil {
		return nil, err
	}
	return d.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request | netlink.Dump},
		Data:   request,
	})
}

func (d *dumper) hangUpLocked() error {
	if d.conn == nil {
		return nil
	}
	err := d.conn.Close()
	d.conn = nil
	return err
}

func (d *dumper) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return d.hangUpLocked()
}
