package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// An nftMonitor hears from the kernel what others change in the table. It is safe
// for concurrent use.
type nftMonitor struct {
	works   atomic.Bool   // nothing escapes it
	changed atomic.Bool   // somebody has changed something
	self    atomic.Uint32 // the port of the socket by which we change things

	mu   sync.Mutex
	conn *netlink.Conn // nil: it does not run
}

// told reports whether somebody else has changed something since the last call.
func (w *nftMonitor) told() bool { return w.changed.Swap(false) }

// watch calls changed whenever somebody else has changed something in the table,
// until ctx ends.
func (n *nft) watch(ctx context.Context, changed func()) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })() // wakes Receive
	if err := n.monitor.begin(conn); err != nil {
		return errors.Join(fmt.Errorf("watch nftables: %w", err), conn.Close())
	}
	defer n.monitor.end()
	changed() // what happened before was not told
	for {
		messages, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // the kernel had more to tell than we took
		case err != nil:
			return errors.Join(fmt.Errorf("watch nftables: %w", err), conn.Close())
		case !slices.ContainsFunc(messages, n.concerns):
			continue
		}
		n.monitor.changed.Store(true)
		changed()
	}
}

// concerns reports whether a message tells of a change of the table by somebody
// else.
func (n *nft) concerns(m netlink.Message) bool {
	ad, err := attributes(m)
	if err != nil || m.Header.Type == newGeneration || m.Header.PID == n.monitor.self.Load() {
		return false
	}
	for ad.Next() {
		if ad.Type() == unix.NFTA_TABLE_NAME { // the same number in messages about what is in a table
			return bytes.Equal(ad.Bytes(), append([]byte(n.table.Name), 0))
		}
	}
	return false
}

// newGeneration is the type of the message at the end of each transaction.
const newGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN

func (w *nftMonitor) begin(conn *netlink.Conn) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return err
	}
	w.conn = conn
	w.works.Store(true)
	w.changed.Store(true)
	return nil
}

func (w *nftMonitor) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conn = nil
	w.works.Store(false)
}

// quietly calls act while the kernel does not tell what is changed.
func (w *nftMonitor) quietly(act func() error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn == nil {
		return act()
	}
	if err := w.conn.LeaveGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return err
	}
	err := act()
	if joined := w.conn.JoinGroup(unix.NFNLGRP_NFTABLES); joined != nil {
		w.works.Store(false)
	}
	return err
}
