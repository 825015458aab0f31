package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// nft keeps bans in nftables. All that one call changes is one transaction:
// packets meet the old bans or the new ones.
type nft struct {
	nftConn
	monitor nftMonitor

	// generation counts the transactions of everybody. It is that at which the
	// sets were last known to hold our bans.
	generation uint32
}

func newNFT(s settings) *nft {
	return &nft{nftConn: nftConn{nftTable: newNFTTable(s)}}
}

// check says why nftables cannot be used; nil: it can. It changes nothing.
func (n *nft) check(context.Context) error {
	if err := n.open(); err != nil {
		return err
	}
	_, err := n.readGeneration()
	if errors.Is(err, unix.EINVAL) { // no such subsystem
		return fmt.Errorf("nftables: %w", errNoNFTables)
	}
	if err == nil && n.setsOnly {
		err = n.checkSets()
	}
	return err
}

// prepare makes what is missing. Bans that are there stay.
func (n *nft) prepare(ctx context.Context) error {
	if err := n.check(ctx); err != nil {
		return err
	}
	if intact, err := n.intact(); err != nil || intact {
		return err
	}
	n.queueTable()
	return n.commit()
}

// replace makes bans all that there are.
func (n *nft) replace(_ context.Context, bans map[netip.Prefix]time.Time) error {
	if err := n.open(); err != nil {
		return err
	}
	var err error
	if n.generation, err = n.readGeneration(); err != nil {
		return err
	}
	intact, err := n.intact()
	if err != nil {
		return err
	}
	if intact {
		n.queueFlush()
	} else {
		n.queueTable()
	}
	want, now := elementsOf(bans), time.Now()
	for i := range n.sets {
		n.queueAdd(i, want[i], now)
	}
	return n.commitNext(len(bans))
}

// change makes after of before, which both hold all bans of the regions that
// change. It fails if the sets do not hold what they should.
func (n *nft) change(_ context.Context, before, after map[netip.Prefix]time.Time) error {
	if err := n.open(); err != nil {
		return err
	}
	was, want, now := elementsOf(before), elementsOf(after), time.Now()
	for i := range n.sets {
		drop, put := difference(was[i], want[i], now)
		n.queueDelete(i, drop, now)
		n.queueAdd(i, put, now)
	}
	return n.commitNext(len(before) + len(after))
}

// manyBans is from how many bans on the kernel is not to tell the monitor of our
// own transactions: it reserves a page for each element that it tells of.
const manyBans = 64

// commitNext commits what was queued about some number of bans, and notes whether
// that was the only transaction since n.generation.
func (n *nft) commitNext(bans int) error {
	n.monitor.self.Store(n.socket.PID())
	var err error
	if bans < manyBans {
		err = n.commit()
	} else {
		err = n.monitor.quietly(n.commit)
	}
	if err != nil {
		return err
	}
	now, err := n.readGeneration()
	switch {
	case err != nil:
		return err
	case now == n.generation+1:
		n.generation = now
	case bans >= manyBans:
		n.monitor.changed.Store(true) // it may have been kept from telling
	}
	return nil
}

// undisturbed reports whether nobody else has touched the table since the sets
// were known to hold our bans, or since the last call.
func (n *nft) undisturbed(context.Context, map[netip.Prefix]time.Time) (bool, error) {
	if err := n.open(); err != nil {
		return false, err
	}
	told := n.monitor.told()
	now, err := n.readGeneration()
	if err != nil || now == n.generation && !told {
		return err == nil, err
	}
	n.generation = now
	if told || !n.monitor.works.Load() {
		return false, nil
	}
	return n.intact()
}

// holds reports whether everything is as it should be and the sets hold exactly
// these bans. It uses a connection of its own, so that bans need not wait for it.
func (n *nft) holds(_ context.Context, bans map[netip.Prefix]time.Time) (bool, error) {
	c := nftConn{nftTable: n.nftTable}
	if err := c.open(); err != nil {
		return false, err
	}
	defer c.close()
	if intact, err := c.intact(); err != nil || !intact {
		return false, err
	}
	want := elementsOf(bans)
	for i, set := range c.sets {
		got, err := c.readSet(set)
		if err != nil {
			return false, err
		}
		if !equal(want[i], got, time.Now()) {
			return false, nil
		}
	}
	return true, nil
}

// remove takes away all that is ours.
func (n *nft) remove(context.Context) error {
	if err := n.open(); err != nil {
		return err
	}
	if n.setsOnly {
		n.queueFlush()
	} else {
		n.conn.AddTable(n.table) // to delete what is not there fails
		n.conn.DelTable(n.table)
	}
	return n.commit()
}
