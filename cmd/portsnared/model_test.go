package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/control"
	"github.com/portsnare/portsnare/internal/nettest"
)

var (
	modelSteps = flag.Int("model.steps", 150, "take `N` random steps in TestModelOfBans")
	modelSeed  = flag.Uint64("model.seed", 0, "begin TestModelOfBans with `SEED`; 0: another each time")
)

// What is promised: how soon everything is as it was ordered, and how soon what
// others destroyed is put right.
const (
	obeyWithin = time.Second
	healWithin = 5 * time.Second
)

// policyFor is how long the policy bans in the model's daemon, each time.
const policyFor = 3 * time.Second

// After every step the model, the bans that the daemon lists and the sets of the
// kernel are the same, whatever operators, scanners, foreign programs, kills and
// restarts do in whatever order. The clock is not set here, as no namespace has a
// wall clock of its own: tests of detector, internal/state and outputs/firewall
// do that.
func TestModelOfBans(t *testing.T) {
	t.Parallel()
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("repeat with -run TestModelOfBans -model.steps %d -model.seed %d", *modelSteps, seed)
	w := newBanWorld(t, rand.New(rand.NewPCG(seed, 0)))
	for w.step = range *modelSteps {
		w.act(t)
	}
	w.report(t)
}

// A banModel is what is to be in force. Its methods do what [detector.Bans] and
// the guard are documented to do, in the simplest way.
type banModel struct {
	until   map[netip.Prefix]time.Time // when a ban ends; the zero time is for ever
	graced  map[netip.Prefix]bool      // the policy does not ban them any more
	allowed map[netip.Prefix]bool
	ended   map[netip.Prefix]time.Time // bans that have ended by themselves
}

// sourceOf returns what the policy bans for a prefix: no less of IPv6 than a /64.
func sourceOf(p netip.Prefix) netip.Prefix {
	if p.Addr().Is6() && p.Bits() > 64 {
		p = netip.PrefixFrom(p.Addr(), 64)
	}
	return p.Masked()
}

func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

func lasts(until, other time.Time) bool {
	return until.IsZero() || !other.IsZero() && !until.Before(other)
}

// held reports whether a ban that includes p lasts at least until then.
func (m *banModel) held(p netip.Prefix, then time.Time) bool {
	for source, until := range m.until {
		if contains(source, p) && lasts(until, then) {
			return true
		}
	}
	return false
}

func (m *banModel) spared(p netip.Prefix) bool {
	for allowed := range m.allowed {
		if allowed.Overlaps(p) {
			return true
		}
	}
	return false
}

// wanted reports whether a probe by p leads to a ban.
func (m *banModel) wanted(p netip.Prefix) bool {
	for graced := range m.graced {
		if contains(graced, p) {
			return false
		}
	}
	return !m.spared(p) && !m.held(p, time.Now())
}

func (m *banModel) pardon(p netip.Prefix) {
	p = sourceOf(p)
	for source := range m.until {
		if contains(p, source) {
			delete(m.until, source)
			m.graced[source] = true
		}
	}
	if p.IsSingleIP() || p.Addr().Is6() && p.Bits() == 64 {
		m.graced[p] = true
	}
}

func (m *banModel) allow(p netip.Prefix) {
	m.allowed[p] = true
	m.pardon(p)
	maps.DeleteFunc(m.until, func(source netip.Prefix, _ time.Time) bool { return source.Overlaps(p) })
}

// forget drops the bans that have ended.
func (m *banModel) forget(now time.Time) {
	for source, until := range m.until {
		if !until.IsZero() && until.Before(now) {
			m.ended[source] = until
			delete(m.until, source)
		}
	}
}

// A banWorld is a fortress, the model of its bans, and chance.
type banWorld struct {
	*fortress
	banModel
	wire    *vectorWire
	history string
	rand    *rand.Rand
	step    int
	kills   int             // of the module, since the daemon was started
	said    []string        // the last steps
	took    []time.Duration // until all was the same
}

func newBanWorld(t *testing.T, random *rand.Rand) *banWorld {
	t.Helper()
	w := &banWorld{
		fortress: newFortress(t, fmt.Sprintf("for = %q\nmemory = \"0s\"\ngrace = \"1d\"\n", policyFor)),
		banModel: banModel{
			until: make(map[netip.Prefix]time.Time), graced: make(map[netip.Prefix]bool), allowed: make(map[netip.Prefix]bool),
			ended: make(map[netip.Prefix]time.Time),
		},
		rand: random,
	}
	w.history = filepath.Join(w.dir, "history.log")
	w.config += fmt.Sprintf("[log]\nstdout = false\nhistory = %q\n", w.history)
	w.wire = newVectorWire(t, w.scanner, w.target)
	w.start(t)
	return w
}

// act takes a step and has everybody agree again.
func (w *banWorld) act(t *testing.T) {
	t.Helper()
	steps := []struct {
		weight int
		name   string
		take   func(*testing.T) string
		within time.Duration
	}{
		{22, "ban", w.ban, obeyWithin},
		{16, "unban", w.unban, obeyWithin},
		{30, "probe", w.probe, obeyWithin},
		{4, "allow", w.allowSomebody, obeyWithin},
		{5, "disallow", w.disallow, obeyWithin},
		{6, "let a ban end", w.waitForEnd, obeyWithin},
		{3, "reload", w.reload, obeyWithin},
		{8, "nft", w.meddle, healWithin},
		{3, "kill the module", w.killModule, healWithin},
		{2, "kill the daemon", w.killDaemon, obeyWithin},
		{1, "restart the daemon", w.restart, obeyWithin},
	}
	sum := 0
	for _, s := range steps {
		sum += s.weight
	}
	choice, i := w.rand.IntN(sum), 0
	for ; choice >= steps[i].weight; i++ {
		choice -= steps[i].weight
	}
	w.said = append(w.said, fmt.Sprintf("%d: %s", w.step, steps[i].name))
	what := steps[i].take(t)
	w.said[len(w.said)-1] += " " + what
	w.agree(t, steps[i].within)
}

// somebody returns a host, of a few that change slowly with the steps.
func (w *banWorld) somebody() netip.Prefix {
	n := w.step/8 + w.rand.IntN(10)
	addr := netip.AddrFrom4([4]byte{198, 51, 100, byte(n % 256)})
	if n%3 == 0 {
		addr = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 5: 1, 7: byte(n), 15: byte(1 + w.rand.IntN(3))})
	}
	return netip.PrefixFrom(addr, addr.BitLen())
}

// somebodies returns a host or a few neighbours.
func (w *banWorld) somebodies() netip.Prefix {
	p := w.somebody()
	if w.rand.IntN(4) > 0 {
		return p
	}
	bits := p.Bits() - 1 - w.rand.IntN(4)
	if p.Addr().Is6() {
		bits = 66 - 2*w.rand.IntN(4)
	}
	return netip.PrefixFrom(p.Addr(), bits).Masked()
}

// decisive returns once no ban is so near its end that nobody could tell whether
// it counts in what is done to p.
func (w *banWorld) decisive(t *testing.T, p netip.Prefix) {
	t.Helper()
	nettest.WaitFor(t, "bans that end at this moment", func() bool {
		now := time.Now()
		w.forget(now.Add(-50 * time.Millisecond))
		for source, until := range w.until {
			if source.Overlaps(p) && !until.IsZero() && until.Sub(now) < 300*time.Millisecond {
				return false
			}
		}
		return true
	})
}

func (w *banWorld) ban(t *testing.T) string {
	t.Helper()
	p := w.somebodies()
	length := []time.Duration{2 * time.Second, 4 * time.Second, time.Hour, 0}[w.rand.IntN(4)]
	return fmt.Sprintf("%v for %v: %v", p, length, w.order(t, p, length))
}

// order orders a ban and reports what came of it.
func (w *banWorld) order(t *testing.T, p netip.Prefix, length time.Duration) string {
	t.Helper()
	w.decisive(t, p)
	var until time.Time
	if length > 0 {
		until = time.Now().Add(length)
	}
	got, err := w.client.Ban(t.Context(), control.BanRequest{Source: p, For: control.Duration(length)})
	refused, _ := errors.AsType[*control.Error](err)
	switch {
	case w.spared(p):
		if refused == nil || refused.Code != control.NeverBanned {
			w.fail(t, "Ban of %v, which is allowed: %v", p, err)
		}
	case refused != nil && refused.Code == control.NoOutput && w.kills < 0:
		return "no module"
	case err != nil:
		w.fail(t, "Ban of %v: %v", p, err)
	case w.held(p, until):
		return "held"
	default:
		if got.Until != nil {
			until = *got.Until
		}
		w.until[p] = until
	}
	return "done"
}

func (w *banWorld) unban(t *testing.T) string {
	t.Helper()
	p := w.somebodies()
	w.decisive(t, p)
	// The daemon clears away ended bans every second, and until then unbans them too.
	nettest.WaitFor(t, "bans that have just ended to be cleared away", func() bool {
		for source, end := range w.ended {
			if contains(p, source) && time.Since(end) < 1500*time.Millisecond {
				return false
			}
		}
		return true
	})
	_, err := w.client.Unban(t.Context(), p)
	refused, _ := errors.AsType[*control.Error](err)
	w.pardon(p)
	inWider := w.held(netip.PrefixFrom(p.Addr(), p.Addr().BitLen()), time.Now())
	if err != nil && !isDelayed(err) && !(inWider && refused != nil && refused.Code == control.NotFound) {
		w.fail(t, "Unban of %v: %v", p, err)
	}
	return fmt.Sprintf("%v, in a wider ban: %v", p, inWider)
}

// isDelayed reports whether an order is carried out once the module is back, which
// was just killed.
func isDelayed(err error) bool {
	delayed, ok := errors.AsType[*control.Error](err)
	return ok && delayed.Code == control.NoOutput && strings.Contains(delayed.Text, "not carried out yet")
}

func (w *banWorld) allowSomebody(t *testing.T) string {
	t.Helper()
	p := w.somebody()
	if _, err := w.client.Allow(t.Context(), control.AllowRequest{Prefix: p}); err != nil && !isDelayed(err) {
		w.fail(t, "Allow of %v: %v", p, err)
	}
	w.allow(p)
	return p.String()
}

func (w *banWorld) disallow(t *testing.T) string {
	t.Helper()
	for p := range w.allowed {
		if err := w.client.Disallow(t.Context(), control.AllowRequest{Prefix: p}); err != nil {
			w.fail(t, "Disallow of %v: %v", p, err)
		}
		delete(w.allowed, p)
		return p.String()
	}
	return "nobody"
}

// probe has somebody probe, and waits until that is written down, which comes
// after the ban.
func (w *banWorld) probe(t *testing.T) string {
	t.Helper()
	p := w.somebody()
	source := sourceOf(p)
	w.decisive(t, source)
	target := w.target.IPv4
	if p.Addr().Is6() {
		target = w.target.IPv6
	}
	line := fmt.Sprintf("Scan from: [%v]", p.Addr())
	before, banned := strings.Count(w.written(t), line), w.wanted(source)
	from := time.Now().Add(policyFor)
	w.wire.send(t, crafted{from: p.Addr(), to: target}.tcp(detector.SYN), 11)
	nettest.WaitFor(t, "a line for the probe", func() bool { return strings.Count(w.written(t), line) > before })
	if banned {
		w.until[source] = w.listed(t, source)
		if until := w.until[source]; until.Before(from) || until.After(time.Now().Add(policyFor)) {
			w.fail(t, "%v is banned until %v, want %v from the probe", source, until, policyFor)
		}
	}
	return fmt.Sprintf("by %v, banned: %v", p.Addr(), banned)
}

func (w *banWorld) written(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(w.history)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(text)
}

// listed returns until when the daemon says that source is banned.
func (w *banWorld) listed(t *testing.T, source netip.Prefix) time.Time {
	t.Helper()
	bans := w.bans(t)
	i := slices.IndexFunc(bans, func(b control.Ban) bool { return b.Source == source })
	if i < 0 || bans[i].Until == nil {
		w.fail(t, "the probe of %v led to none of the bans %v", source, bans)
	}
	return *bans[i].Until
}

// waitForEnd waits for the next ban to end, if that is soon.
func (w *banWorld) waitForEnd(t *testing.T) string {
	t.Helper()
	var next time.Time
	for _, until := range w.until {
		if !until.IsZero() && until.Before(time.Now().Add(5*time.Second)) && (next.IsZero() || until.Before(next)) {
			next = until
		}
	}
	nettest.WaitFor(t, "the end of a ban", func() bool { return time.Now().After(next) })
	return next.Format(time.TimeOnly)
}

func (w *banWorld) reload(t *testing.T) string {
	t.Helper()
	const line = "configuration reloaded"
	before := strings.Count(w.daemon.Stderr.String(), line)
	w.daemon.Signal(t, syscall.SIGHUP)
	nettest.WaitFor(t, line, func() bool { return strings.Count(w.daemon.Stderr.String(), line) > before })
	return ""
}

// meddle does to the firewall what others do.
func (w *banWorld) meddle(t *testing.T) string {
	t.Helper()
	const ours = " inet portsnare "
	command := []string{
		"flush ruleset",
		"delete table" + ours,
		"flush table" + ours,
		"flush set" + ours + "banned4",
		"flush set" + ours + "banned6_64",
		"flush chain" + ours + "prerouting",
		"add element" + ours + "banned4 { 203.0.113.9 timeout 1h }",
		"add element" + ours + "banned4_nets { 203.0.113.64/26 }",
		"delete element" + ours + "banned4 { 203.0.113.10 }; flush set" + ours + "banned4_nets",
	}[w.rand.IntN(9)]
	if strings.HasPrefix(command, "delete element") { // of one that is there
		command = "add element" + ours + "banned4 { 203.0.113.10 }; " + command
	}
	w.target.Run(t, "nft", command)
	return command
}

// killModule also gives an order while there is no module: it is done, or it is
// refused and nothing is left of it.
func (w *banWorld) killModule(t *testing.T) string {
	t.Helper()
	if w.kills == 2 { // the third start would be four seconds later
		return w.killDaemon(t)
	}
	before := w.module(t)
	if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	kills := w.kills
	w.kills = -1
	what := w.ban(t)
	if w.rand.IntN(2) == 0 {
		what += ", unban " + w.unban(t)
	}
	w.kills = kills + 1
	nettest.WaitFor(t, "the module to run again", func() bool {
		now := w.module(t)
		return now.State == "running" && now.Restarts > before.Restarts
	})
	return "and ban " + what
}

func (w *banWorld) module(t *testing.T) control.Output {
	t.Helper()
	all, err := w.client.Outputs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return all[slices.IndexFunc(all, func(o control.Output) bool { return o.Name == "firewall" })]
}

// killDaemon kills the daemon right after an order, which is on the disk by then
// with all that was before it.
func (w *banWorld) killDaemon(t *testing.T) string {
	t.Helper()
	p := w.somebody()
	what := fmt.Sprintf("after ban of %v: %v", p, w.order(t, p, time.Hour))
	if w.spared(p) { // nothing was written
		if _, err := w.client.Unban(t.Context(), p); err != nil && !isDelayed(err) {
			t.Fatal(err)
		}
		w.pardon(p)
	}
	w.daemon.Signal(t, syscall.SIGKILL)
	if err := w.daemon.Wait(t); err == nil {
		w.fail(t, "the daemon survived a kill")
	}
	w.start(t)
	w.kills = 0
	return what
}

func (w *banWorld) restart(t *testing.T) string {
	t.Helper()
	stopWithin(t, w.daemon, unhurried)
	if tables := w.target.Run(t, "nft", "list", "tables"); tables != "" {
		w.fail(t, "without a daemon the firewall has %s", tables)
	}
	w.start(t)
	w.kills = 0
	return ""
}

// agree waits until the daemon's list and the kernel's sets are what the model is.
func (w *banWorld) agree(t *testing.T, within time.Duration) {
	t.Helper()
	began := time.Now()
	for {
		w.forget(time.Now().Add(-time.Second))
		differences := append(w.compareList(t), w.compareKernel(t)...)
		took := time.Since(began)
		if len(differences) == 0 {
			w.took = append(w.took, took)
			return
		}
		if took > within {
			w.fail(t, "after %v:\n%s", within, strings.Join(differences[:min(len(differences), 10)], "\n"))
		}
	}
}

// fail ends the test with the steps that led here.
func (w *banWorld) fail(t *testing.T, format string, args ...any) {
	t.Helper()
	last := w.said[max(0, len(w.said)-12):]
	t.Fatalf("%s\nthe last steps:\n%s", fmt.Sprintf(format, args...), strings.Join(last, "\n"))
}

// report tells how long it took until all was the same.
func (w *banWorld) report(t *testing.T) {
	t.Helper()
	slices.Sort(w.took)
	n := len(w.took)
	t.Logf("the same after %v (median), %v (of 99 in 100), %v (longest)", w.took[n/2], w.took[n*99/100], w.took[n-1])
}

// unsure is how near the end of a ban others may think that it has ended, or not.
const unsure = 300 * time.Millisecond

// compareList says where the daemon's list and the model differ.
func (w *banWorld) compareList(t *testing.T) (differences []string) {
	t.Helper()
	listed := make(map[netip.Prefix]time.Time)
	for _, b := range w.bans(t) {
		listed[b.Source] = time.Time{}
		if b.Until != nil {
			listed[b.Source] = *b.Until
		}
	}
	now := time.Now()
	for _, source := range slices.Collect(maps.Keys(w.until)) {
		until, ok := listed[source]
		switch want := w.until[source]; {
		case !want.IsZero() && want.Sub(now).Abs() < unsure:
		case !want.IsZero() && want.Before(now):
			continue
		case !ok:
			differences = append(differences, fmt.Sprintf("%v is not listed, want it until %v", source, want))
		case until.IsZero() != want.IsZero() || until.Sub(want).Abs() > unsure:
			differences = append(differences, fmt.Sprintf("%v is listed until %v, want %v", source, until, want))
		}
		delete(listed, source)
	}
	for source, until := range listed {
		differences = append(differences, fmt.Sprintf("%v is listed until %v, want it not at all", source, until))
	}
	return differences
}

// compareKernel says where the kernel and the model differ: for the first and the
// last address of all that either of them bans.
func (w *banWorld) compareKernel(t *testing.T) (differences []string) {
	t.Helper()
	elements, err := readKernel(w.target.Command(t.Context(), "nft", "-j", "list", "table", "inet", "portsnare").Output())
	if err != nil {
		return []string{err.Error()}
	}
	now := time.Now()
	var edges []netip.Addr
	for _, e := range elements {
		edges = append(edges, e.first, e.last)
	}
	for source := range w.until {
		edges = append(edges, source.Addr(), lastOf(source))
	}
	for _, addr := range edges {
		want, sure := w.left(addr, now)
		got := leftInKernel(elements, addr)
		if sure && (want == 0) != (got == 0) || want > 0 && got > 0 && (want-got).Abs() > 2500*time.Millisecond {
			differences = append(differences, fmt.Sprintf("the kernel bans %v for %v, want %v", addr, got, want))
		}
	}
	return differences
}

// left returns how long addr is to be banned still, 0 if it is not; and whether
// that is so beyond doubt.
func (m *banModel) left(addr netip.Addr, now time.Time) (longest time.Duration, sure bool) {
	sure = true
	for source, until := range m.until {
		if !source.Contains(addr) {
			continue
		}
		left := until.Sub(now)
		if until.IsZero() {
			left = detector.Forever
		}
		if left.Abs() < unsure {
			sure = false
			continue
		}
		longest = max(longest, left)
	}
	return longest, sure || longest > 0
}

func lastOf(p netip.Prefix) netip.Addr {
	bytes := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < 8*len(bytes); bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return last
}

// A kernelElement is what one element of a set keeps out.
type kernelElement struct {
	first, last netip.Addr
	left        time.Duration
}

// leftInKernel returns how long addr is kept out still, 0 if it is not.
func leftInKernel(elements []kernelElement, addr netip.Addr) (longest time.Duration) {
	for _, e := range elements {
		if e.first.BitLen() == addr.BitLen() && !addr.Less(e.first) && !e.last.Less(addr) {
			longest = max(longest, e.left)
		}
	}
	return longest
}

// readKernel reads what nft -j lists of the table, and checks that there is a
// rule for each set.
func readKernel(text []byte, err error) ([]kernelElement, error) {
	if err != nil {
		return nil, fmt.Errorf("list the table: %w", err)
	}
	var list struct {
		NFTables []struct {
			Rule *struct{}
			Set  *struct {
				Name string
				Elem []json.RawMessage
			}
		}
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, err
	}
	var elements []kernelElement
	rules, sets := 0, 0
	for _, object := range list.NFTables {
		switch {
		case object.Rule != nil:
			rules++
		case object.Set != nil:
			sets++
			for _, raw := range object.Set.Elem {
				e, err := readElement(raw)
				if err != nil {
					return nil, fmt.Errorf("element %s: %w", raw, err)
				}
				if object.Set.Name == "banned6_64" {
					e.last = lastOf(netip.PrefixFrom(e.first, 64))
				}
				elements = append(elements, e)
			}
		}
	}
	if rules != sets || sets == 0 {
		return nil, fmt.Errorf("the table has %d sets and %d rules", sets, rules)
	}
	return elements, nil
}

// readElement reads an element: an address, a prefix or a range, alone or with
// the time that is left.
func readElement(raw json.RawMessage) (kernelElement, error) {
	timed := struct {
		Elem struct {
			Val     json.RawMessage
			Timeout *float64
			Expires float64
		}
	}{}
	if err := json.Unmarshal(raw, &timed); err == nil && timed.Elem.Val != nil {
		e, err := readElement(timed.Elem.Val)
		if timed.Elem.Timeout != nil {
			e.left = time.Duration(timed.Elem.Expires)*time.Second + time.Second/2
		}
		return e, err
	}
	e := kernelElement{left: detector.Forever}
	if err := json.Unmarshal(raw, &e.first); err == nil {
		e.last = e.first
		return e, nil
	}
	var wide struct {
		Prefix *struct {
			Addr netip.Addr
			Len  int
		}
		Range [2]netip.Addr
	}
	if err := json.Unmarshal(raw, &wide); err != nil {
		return e, err
	}
	e.first, e.last = wide.Range[0], wide.Range[1]
	if wide.Prefix != nil {
		e.first = wide.Prefix.Addr
		e.last = lastOf(netip.PrefixFrom(e.first, wide.Prefix.Len))
	}
	return e, nil
}
