package guard

import (
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
)

// netlinkPatience bounds the reading of one table. A million routes take three
// seconds.
const netlinkPatience = 10 * time.Second

// A dumper reads whole tables from the kernel, row by row, so that a large one
// takes no memory. After a failure it opens its socket anew in whichever thread
// asks next. It is not safe for concurrent use.
type dumper struct {
	family int
	conn   *netlink.Conn // nil after a failure
}

// newDumper opens a netlink socket in the network namespace of this thread.
func newDumper(family int) (*dumper, error) {
	d := &dumper{family: family}
	return d, d.dial()
}

func (d *dumper) dial() (err error) {
	if d.conn, err = netlink.Dial(d.family, nil); err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	return nil
}

// A rowFunc takes the fixed part and the attributes of one row of a table. It
// must not keep them.
type rowFunc func(fixed []byte, attributes *netlink.AttributeDecoder) error

// mostDumps bounds how often a table is read that changes meanwhile.
const mostDumps = 3

// dump calls row with each row of a table, whose fixed part has a given size.
// If the table changes meanwhile, a row may come again, or be one that has gone.
func (d *dumper) dump(kind netlink.HeaderType, request []byte, fixed int, row rowFunc) error {
	if d.conn == nil {
		if err := d.dial(); err != nil {
			return err
		}
	}
	for range mostDumps {
		complete, err := d.ask(kind, request, fixed, row)
		if err != nil {
			// What is left of the answers stays in this socket, so leave it.
			_ = d.close()
			return err
		}
		if complete {
			break
		}
	}
	return nil // a change that is still missing will be noticed
}

// ask reads a table once. It is not complete if the kernel says that the table
// changed meanwhile, for then rows may be missing.
func (d *dumper) ask(kind netlink.HeaderType, request []byte, fixed int, row rowFunc) (complete bool, err error) {
	if err := d.conn.SetDeadline(time.Now().Add(netlinkPatience)); err != nil {
		return false, err
	}
	_, err = d.conn.Send(netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request | netlink.Dump},
		Data:   request,
	})
	if err != nil {
		return false, err
	}
	complete = true
	for m, err := range d.conn.ReceiveIter() {
		if err != nil {
			return false, err
		}
		if m.Header.Flags&netlink.DumpInterrupted != 0 {
			complete = false
		}
		if len(m.Data) < fixed {
			return false, fmt.Errorf("an answer of %d bytes, shorter than its header", len(m.Data))
		}
		attributes, err := netlink.NewAttributeDecoder(m.Data[fixed:])
		if err != nil {
			return false, err
		}
		if err := row(m.Data[:fixed], attributes); err != nil {
			return false, err
		}
		if err := attributes.Err(); err != nil {
			return false, err
		}
	}
	return complete, nil
}

func (d *dumper) close() error {
	if d.conn == nil {
		return nil
	}
	err := d.conn.Close()
	d.conn = nil
	return err
}
