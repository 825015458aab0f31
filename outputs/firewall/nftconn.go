package firewall

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// maxMessage bounds the elements in a netlink message: the length of their
	// attribute has 16 bits, and one takes 76 bytes at most.
	maxMessage = 500

	// maxTransaction bounds a transaction, which is one message of the socket,
	// in bytes: maxBans fit.
	maxTransaction = 128 << 20

	// ackBuffer holds the acknowledgements of such a transaction.
	ackBuffer = 16 << 20

	// shortest is the least time that the kernel is given: of less than a tick of
	// its clock it makes 0, which is for ever.
	shortest = 100 * time.Millisecond

	// netlinkPatience is how long the kernel may take to answer. It answers
	// while we send, so only a lost answer takes longer.
	netlinkPatience = 20 * time.Second
)

// An nftConn is a connection to nftables for what concerns one table.
type nftConn struct {
	*nftTable
	conn   *nftables.Conn // nil: to be opened
	socket *netlink.Conn  // conn's
}

// open connects to the kernel unless it is connected.
func (c *nftConn) open() error {
	if c.conn != nil {
		return c.socket.SetDeadline(time.Now().Add(netlinkPatience))
	}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(s *netlink.Conn) error {
		c.socket = s
		return errors.Join(
			s.SetWriteBuffer(maxTransaction),
			s.SetReadBuffer(ackBuffer),
			s.SetDeadline(time.Now().Add(netlinkPatience)))
	}))
	if err != nil {
		return explain(err)
	}
	c.conn = conn
	return nil
}

// close ends the connection. A later open makes a new one.
func (c *nftConn) close() error {
	if c.conn == nil {
		return nil
	}
	conn := c.conn
	c.conn = nil
	return conn.CloseLasting()
}

// fail explains err and closes the connection, in which answers may be left and
// messages queued.
func (c *nftConn) fail(err error) error {
	c.close()
	return explain(err)
}

// errNoNFTables says that the kernel does not know nftables.
var errNoNFTables = errors.New("the kernel lacks nftables; run \"modprobe nf_tables\", or set backend = \"ipset\"")

// explain adds to an error of the kernel what an administrator can do about it.
func explain(err error) error {
	var remedy error
	switch {
	case errors.Is(err, unix.EPERM):
		remedy = errNoCapability
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
		remedy = errNoNFTables
	case errors.Is(err, unix.ENFILE):
		remedy = errors.New("a set is full; raise its size")
	default:
		return fmt.Errorf("nftables: %w", err)
	}
	return fmt.Errorf("nftables: %w: %w", err, remedy)
}

// commit sends what was queued as one transaction. After an error nothing of it
// has happened.
func (c *nftConn) commit() error {
	if err := c.conn.Flush(); err != nil {
		return c.fail(err)
	}
	return nil
}

// queueTable queues what replaces the table, whatever it is, by an empty one.
func (c *nftConn) queueTable() {
	c.conn.AddTable(c.table) // to delete what is not there fails
	c.conn.DelTable(c.table)
	c.conn.AddTable(c.table)
	for _, set := range c.sets {
		queued(c.conn.AddSet(set, nil))
	}
	for _, chain := range c.chains {
		c.conn.AddChain(chain)
		for _, rule := range c.rules {
			c.conn.AddRule(&nftables.Rule{Table: c.table, Chain: chain, Exprs: rule})
		}
	}
}

// queueFlush queues what empties the sets.
func (c *nftConn) queueFlush() {
	for _, set := range c.sets {
		c.conn.FlushSet(set)
	}
}

// queueAdd queues elements for set i, but for those whose time is over. An
// element that is there already keeps its time.
func (c *nftConn) queueAdd(i int, spans map[span]time.Time, now time.Time) {
	elements := make([]nftables.SetElement, 0, 2*len(spans))
	for s, until := range spans {
		e := nftables.SetElement{Key: s.first.AsSlice()}
		if !until.IsZero() {
			e.Timeout = until.Sub(now)
			if e.Timeout < shortest {
				continue
			}
		}
		elements = c.appendEnd(append(elements, e), i, s)
	}
	for chunk := range slices.Chunk(elements, maxMessage) {
		queued(c.conn.SetAddElements(c.sets[i], chunk))
	}
}

// queueDelete queues the deletion of elements that are there, or were until
// moments ago.
func (c *nftConn) queueDelete(i int, spans map[span]time.Time, now time.Time) {
	elements := make([]nftables.SetElement, 0, 2*len(spans))
	doubtful := make(map[span]time.Time)
	for s, until := range spans {
		elements = c.appendEnd(append(elements, nftables.SetElement{Key: s.first.AsSlice()}), i, s)
		if !until.IsZero() && until.Sub(now) < tolerance {
			doubtful[s] = time.Time{}
		}
	}
	c.queueAdd(i, doubtful, now) // to delete what is not there fails
	for chunk := range slices.Chunk(elements, maxMessage) {
		queued(c.conn.SetDeleteElements(c.sets[i], chunk))
	}
}

// appendEnd appends the element with which an interval set is told where s ends:
// at the first address behind it, if there is one.
func (c *nftConn) appendEnd(elements []nftables.SetElement, i int, s span) []nftables.SetElement {
	behind := s.last.Next()
	if !c.sets[i].Interval || !behind.IsValid() {
		return elements
	}
	return append(elements, nftables.SetElement{Key: behind.AsSlice(), IntervalEnd: true})
}

// queued takes what the library says of a message that it was to queue. Ours can
// always be written, so an error is a fault of this program.
func queued(err error) {
	if err != nil {
		panic("firewall: " + err.Error())
	}
}

// difference returns what to delete and to add so that was becomes want. What
// has surely lapsed is not deleted.
func difference(was, want map[span]time.Time, now time.Time) (drop, put map[span]time.Time) {
	drop, put = make(map[span]time.Time), make(map[span]time.Time)
	for s, until := range want {
		if old, ok := was[s]; !ok || !old.Equal(until) {
			put[s] = until
		}
	}
	for s, until := range was {
		_, stays := want[s]
		_, renewed := put[s]
		if (renewed || !stays) && !lapsed(until, now) {
			drop[s] = until
		}
	}
	return drop, put
}
