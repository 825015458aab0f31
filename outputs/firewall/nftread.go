package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// forever is the time left to an element without timeout.
const forever = time.Duration(-1)

// equal reports whether a set holds what it should for as long as it should.
func equal[K comparable](want map[K]time.Time, got map[K]time.Duration, now time.Time) bool {
	for s, until := range want {
		left, ok := got[s]
		switch {
		case until.IsZero():
			if !ok || left != forever {
				return false
			}
		case !ok:
			if until.Sub(now) > tolerance {
				return false
			}
		case left == forever || (until.Sub(now)-left).Abs() > tolerance:
			return false
		}
	}
	for s, left := range got {
		if _, ok := want[s]; !ok && (left == forever || left > tolerance) {
			return false
		}
	}
	return true
}

// intact reports whether the table is as we would make it, apart from the
// elements of its sets, or in a foreign table whether its sets are.
func (c *nftConn) intact() (bool, error) {
	if c.setsOnly {
		return true, c.checkSets()
	}
	table, err := c.conn.ListTableOfFamily(c.table.Name, c.table.Family)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, c.fail(err)
	}
	if table.Flags != 0 { // dormant
		return false, nil
	}
	return allOf(c.setsIntact, c.chainsIntact, c.rulesIntact)
}

func allOf(checks ...func() (bool, error)) (bool, error) {
	for _, check := range checks {
		if ok, err := check(); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

func (c *nftConn) setsIntact() (bool, error) {
	for _, want := range c.sets {
		got, err := c.conn.GetSetByName(c.table, want.Name)
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		if err != nil {
			return false, c.fail(err)
		}
		if fault(want, got) != "" {
			return false, nil
		}
	}
	return true, nil
}

// checkSets says what is missing in the administrator's table.
func (c *nftConn) checkSets() error {
	var faults []error
	for _, want := range c.sets {
		got, err := c.conn.GetSetByName(c.table, want.Name)
		switch {
		case errors.Is(err, unix.ENOENT):
			faults = append(faults, fmt.Errorf("table %s has no set %s: add `%s`", c.name(), want.Name, declaration(want)))
		case err != nil:
			return c.fail(err)
		default:
			if text := fault(want, got); text != "" {
				faults = append(faults, fmt.Errorf("set %s in table %s %s: declare it as `%s`",
					want.Name, c.name(), text, declaration(want)))
			}
		}
	}
	return errors.Join(faults...)
}

// fault says in what a set differs from what it must be; "" if in nothing.
func fault(want, got *nftables.Set) string {
	switch {
	case got.KeyType.GetNFTMagic() != want.KeyType.GetNFTMagic() || got.IsMap || got.Concatenation:
		return "holds something else"
	case !got.HasTimeout:
		return "takes no timeouts"
	case got.Timeout != 0:
		return "has a default timeout"
	case got.Interval != want.Interval:
		return "has other flags"
	}
	return ""
}

func (c *nftConn) chainsIntact() (bool, error) {
	all, err := c.conn.ListChainsOfTableFamily(c.table.Family)
	if err != nil {
		return false, c.fail(err)
	}
	ours := slices.DeleteFunc(all, func(got *nftables.Chain) bool { return got.Table == nil || got.Table.Name != c.table.Name })
	if len(ours) != len(c.chains) {
		return false, nil
	}
	for _, want := range c.chains {
		if !slices.ContainsFunc(ours, func(got *nftables.Chain) bool { return sameChain(want, got) }) {
			return false, nil
		}
	}
	return true, nil
}

func sameChain(want, got *nftables.Chain) bool {
	return got.Name == want.Name && got.Type == want.Type &&
		got.Hooknum != nil && *got.Hooknum == *want.Hooknum &&
		got.Priority != nil && *got.Priority == *want.Priority &&
		got.Policy != nil && *got.Policy == *want.Policy
}

func (c *nftConn) rulesIntact() (bool, error) {
	for _, chain := range c.chains {
		rules, err := c.conn.GetRules(c.table, chain)
		if err != nil {
			return false, c.fail(err)
		}
		if len(rules) != len(c.rules) {
			return false, nil
		}
		for i, r := range rules {
			if !sameRule(c.rules[i], r.Exprs) {
				return false, nil
			}
		}
	}
	return true, nil
}

// sameRule reports whether two rules are equal but for their counters.
func sameRule(want, got []expr.Any) bool {
	for _, e := range got {
		switch e := e.(type) {
		case *expr.Counter:
			*e = expr.Counter{}
		case *expr.Lookup:
			e.SetID = 0 // counts within a transaction
		}
	}
	return reflect.DeepEqual(want, got)
}

// readGeneration returns the number of the last transaction that changed the
// ruleset, of whatever table.
func (c *nftConn) readGeneration() (uint32, error) {
	messages, err := c.request(unix.NFT_MSG_GETGEN)
	if err != nil {
		return 0, err
	}
	for _, m := range messages {
		ad, err := attributes(m)
		if err != nil {
			return 0, err
		}
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				return ad.Uint32(), nil
			}
		}
	}
	return 0, errors.New("nftables: the kernel told no generation of the ruleset")
}

// maxReads bounds how often a set is read anew because it changed meanwhile.
const maxReads = 10

// readSet returns what is in a set, and how long it stays there.
func (c *nftConn) readSet(set *nftables.Set) (map[span]time.Duration, error) {
	for range maxReads {
		read := setReader{intervals: set.Interval, left: make(map[span]time.Duration)}
		err := c.dump(set, read.message)
		switch {
		case errors.Is(err, errInterrupted):
			continue
		case err != nil:
			return nil, c.fail(err)
		}
		read.pair()
		return read.left, nil
	}
	return nil, fmt.Errorf("nftables: read set %s: it changed %d times meanwhile", set.Name, maxReads)
}

var errInterrupted = errors.New("the set changed meanwhile")

// dump calls visit with the messages that hold a set's elements.
//
// It receives by itself: the kernel sends no larger pieces than somebody has
// offered room for, at most 32 KiB, and finds the place of each piece by counting
// from the set's beginning. In pieces of a page, 100,000 elements take seconds.
func (c *nftConn) dump(set *nftables.Set, visit func(netlink.Message) error) error {
	name, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: []byte(set.Table.Name + "\x00")},
		{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: []byte(set.Name + "\x00")},
	})
	if err != nil {
		return err
	}
	if _, err := c.socket.Send(c.message(unix.NFT_MSG_GETSETELEM, netlink.Dump, name)); err != nil {
		return err
	}
	raw, err := c.socket.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	interrupted := false
	for {
		piece, err := receive(raw, buf)
		if err != nil {
			return err
		}
		for _, m := range piece {
			interrupted = interrupted || m.Header.Flags&uint16(netlink.DumpInterrupted) != 0
			switch m.Header.Type {
			case unix.NLMSG_ERROR:
				return errorOf(m.Data)
			case unix.NLMSG_DONE:
				if interrupted {
					return errInterrupted
				}
				return nil
			}
			if err := visit(netlink.Message{Data: m.Data}); err != nil {
				return err
			}
		}
	}
}

// receive returns the next messages, which lie in buf.
func receive(raw syscall.RawConn, buf []byte) ([]syscall.NetlinkMessage, error) {
	var n int
	var failed error
	err := raw.Read(func(fd uintptr) bool {
		n, _, failed = unix.Recvfrom(int(fd), buf, 0)
		return !errors.Is(failed, unix.EAGAIN)
	})
	if err := errors.Join(err, failed); err != nil {
		return nil, err
	}
	return syscall.ParseNetlinkMessage(buf[:n])
}

// errorOf returns the error that an error message holds.
func errorOf(data []byte) error {
	if len(data) < 4 {
		return errShort
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(data)))
}

// request asks the kernel for something that comes in one message.
func (c *nftConn) request(kind uint16) ([]netlink.Message, error) {
	messages, err := c.socket.Execute(c.message(kind, 0, nil))
	if err != nil {
		return nil, c.fail(err)
	}
	return messages, nil
}

// message returns a request, for the table's family.
func (c *nftConn) message(kind uint16, flags netlink.HeaderFlags, attributes []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind),
			Flags: netlink.Request | flags,
		},
		Data: append([]byte{byte(c.table.Family), unix.NFNETLINK_V0, 0, 0}, attributes...),
	}
}

// A setReader collects the elements of a set.
type setReader struct {
	intervals bool
	left      map[span]time.Duration
	edges     []edge // of intervals, which come in any order
}

// An edge is where an interval begins or ends.
type edge struct {
	at   netip.Addr
	end  bool // at is the first address behind it
	left time.Duration
}

// sizeofNfgenmsg is the length of what comes before a message's attributes.
const sizeofNfgenmsg = 4

var errShort = errors.New("a message is too short")

// attributes returns a decoder for what a message says.
func attributes(m netlink.Message) (*netlink.AttributeDecoder, error) {
	if len(m.Data) < sizeofNfgenmsg {
		return nil, errShort
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[sizeofNfgenmsg:])
	if err == nil {
		ad.ByteOrder = binary.BigEndian
	}
	return ad, err
}

func (r *setReader) message(m netlink.Message) error {
	ad, err := attributes(m)
	if err != nil {
		return err
	}
	for ad.Next() {
		if ad.Type() == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			ad.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(r.element)
				}
				return nil
			})
		}
	}
	return ad.Err()
}

func (r *setReader) element(ad *netlink.AttributeDecoder) error {
	e := edge{left: forever}
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_SET_ELEM_KEY:
			ad.Nested(func(key *netlink.AttributeDecoder) error {
				for key.Next() {
					if key.Type() == unix.NFTA_DATA_VALUE {
						e.at, _ = netip.AddrFromSlice(key.Bytes())
					}
				}
				return nil
			})
		case unix.NFTA_SET_ELEM_FLAGS:
			e.end = ad.Uint32()&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_EXPIRATION:
			e.left = time.Duration(ad.Uint64()) * time.Millisecond
		}
	}
	if !e.at.IsValid() {
		return errors.New("an element without address")
	}
	if r.intervals {
		r.edges = append(r.edges, e)
	} else {
		r.left[span{e.at, e.at}] = e.left
	}
	return nil
}

// pair makes spans of the edges. A beginning without an end reaches to the last
// address; an end without a beginning belongs to one that has lapsed.
func (r *setReader) pair() {
	slices.SortFunc(r.edges, func(a, b edge) int {
		c := a.at.Compare(b.at)
		if c == 0 && a.end != b.end {
			if a.end {
				return -1 // one interval ends where the next begins
			}
			return 1
		}
		return c
	})
	for i, e := range r.edges {
		if e.end {
			continue
		}
		last := lastOf(netip.PrefixFrom(e.at, 0))
		if i+1 < len(r.edges) {
			last = r.edges[i+1].at.Prev()
		}
		r.left[span{e.at, last}] = e.left
	}
}
