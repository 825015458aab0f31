package capture

import (
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
)

// netlinkPatience bounds a dump. The kernel answers at once; this is for a
// kernel that does not, so that capture cannot hang on it.
const netlinkPatience = 2 * time.Second

// A dumper reads whole tables from the kernel. It is not safe for concurrent
// use.
type dumper struct {
	family int
	conn   *netlink.Conn // nil after a failure
}

// newDumper opens a netlink socket in the network namespace of this thread.
func newDumper(family int) (*dumper, error) {
	d := &dumper{family: family}
	return d, d.dial()
}

func (d *dumper) dial() error {
	conn, err := netlink.Dial(d.family, nil)
	if err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	d.conn = conn
	return nil
}

// dump returns the kernel's answers to a request for a table.
func (d *dumper) dump(kind netlink.HeaderType, request []byte) ([]netlink.Message, error) {
	if d.conn == nil {
		if err := d.dial(); err != nil {
			return nil, err
		}
	}
	answers, err := d.execute(kind, request)
	if err != nil {
		// What is left of the answers stays in this socket, so leave it.
		_ = d.close()
		return nil, err
	}
	return answers, nil
}

func (d *dumper) execute(kind netlink.HeaderType, request []byte) ([]netlink.Message, error) {
	if err := d.conn.SetDeadline(time.Now().Add(netlinkPatience)); err != nil {
		return nil, err
	}
	return d.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request | netlink.Dump},
		Data:   request,
	})
}

func (d *dumper) close() error {
	if d.conn == nil {
		return nil
	}
	err := d.conn.Close()
	d.conn = nil
	return err
}
