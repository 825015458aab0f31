package capture

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
)

// Sniff observes the probes that arrive at s until ctx ends. Then it takes some
// 20 ms, never much longer, for those on their way, counts as lost what remains
// of a flood, and returns nil. It calls observe from one goroutine, in the order
// of arrival. It follows interfaces and addresses that come and go.
//
// A socket can be sniffed once.
func Sniff(ctx context.Context, s *PacketSocket, observe Observer) error {
	g, ctx := errgroup.WithContext(ctx)
	changed := make(chan struct{}, 1)
	g.Go(func() error { return s.read(ctx, observe) })
	g.Go(func() error { return s.noticeChanges(ctx, changed) })
	g.Go(func() error { return s.keepUp(ctx, changed) })
	return g.Wait()
}

// read observes what the ring holds, block by block. The deadline, which each
// read checks first, lets it see the last block and still end under a flood.
func (s *PacketSocket) read(ctx context.Context, observe Observer) error {
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.ring == nil {
		return fmt.Errorf("read packets: %w", os.ErrClosed)
	}
	lastBlock := s.ring.lastHandOver()
	stop := context.AfterFunc(ctx, func() { _ = s.file.SetReadDeadline(time.Now().Add(lastBlock)) })
	defer stop()

	r := &sniffer{decoder: newDecoder(), observe: observe}
	ready := func(uintptr) bool { return s.ring.ready() }
	for {
		if err := s.conn.Read(ready); err != nil {
			s.settle()
			return s.whyEnded(ctx, err)
		}
		counts := r.block(s.ring.block(), s.watch.Load())
		s.ring.release()
		s.count(&counts)
		runtime.Gosched() // with few cores, let the outputs have their turn under load
	}
}

// whyEnded returns what ended the reading with err, nil if ctx did.
func (s *PacketSocket) whyEnded(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		if s.closed.Load() {
			err = os.ErrClosed
		}
		return fmt.Errorf("read packets: %w", err)
	}
	return nil
}

// resyncPause is the least time between two readings of the host's interfaces
// and addresses, so that many changes at a time cost one reading.
const resyncPause = 100 * time.Millisecond

// noticeChanges tells changed when the host's interfaces or addresses may have
// changed.
func (s *PacketSocket) noticeChanges(ctx context.Context, changed chan<- struct{}) error {
	var limit logLimit
	for ctx.Err() == nil {
		if err := s.host.wait(ctx); err != nil && ctx.Err() == nil {
			if limit.allow(time.Now()) {
				s.log.WithError(err).Warn("interface changes may go unnoticed for a moment")
			}
			pause(ctx, time.Second)
		}
		signal(changed)
	}
	return nil
}

// countersInterval is how often the kernel's counters are read at the least.
// They have 32 bits.
const countersInterval = time.Minute

// keepUp follows the host's changes.
func (s *PacketSocket) keepUp(ctx context.Context, changed chan struct{}) error {
	counters := time.NewTicker(countersInterval)
	defer counters.Stop()
	var limit logLimit
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-counters.C:
			s.Stats()
		case <-changed:
			if err := s.resync(); err != nil && ctx.Err() == nil {
				if limit.allow(time.Now()) {
					s.log.WithError(err).Warn("capture goes on with the interfaces and addresses known before")
				}
				signal(changed) // try again
			}
			pause(ctx, resyncPause)
		}
	}
}

// resync reads the host's interfaces and addresses again.
func (s *PacketSocket) resync() error {
	view, err := s.host.view()
	if err != nil {
		return err
	}
	before := s.watch.Load()
	if err := s.setView(view); err != nil {
		return err
	}
	s.logChanges(before.rule, before.view, view)
	return nil
}

// logChanges tells which wanted interfaces went and came. Those that were asked
// for by name matter to the administrator; others come and go with containers.
func (s *PacketSocket) logChanges(rule interfaceRule, before, after *hostView) {
	came, went := logrus.DebugLevel, logrus.DebugLevel
	if rule.named() {
		came, went = logrus.InfoLevel, logrus.WarnLevel
	}
	was, is := rule.wanted(before), rule.wanted(after)
	for _, name := range was {
		if !slices.Contains(is, name) {
			s.log.WithField("interface", name).Log(went, "interface is gone or down")
		}
	}
	for _, name := range is {
		if !slices.Contains(was, name) {
			s.log.WithField("interface", name).Log(came, "capture on interface begins")
		}
	}
}

// signal leaves a message unless there is one.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// A sniffer turns blocks into probes. Per packet it allocates nothing.
type sniffer struct {
	decoder  *decoder
	observe  Observer
	requests requests
	packet   packet // here, so that it is not allocated
}

// block observes the probes in a block and returns what became of its packets.
func (r *sniffer) block(block []byte, w *watch) packetCounts {
	var counts packetCounts
	var f frame
	frames := readBlock(block)
	for frames.next(&f) {
		r.frame(&f, w, &counts)
	}
	if frames.broken {
		counts.brokenBlocks++
	}
	return counts
}

func (r *sniffer) frame(f *frame, w *watch, counts *packetCounts) {
	l, wanted := w.link(f.index)
	if !wanted {
		counts.unwatched++
		return
	}
	r.packet = packet{
		at:        f.at,
		etherType: f.startsWith(),
		data:      f.data,
		length:    f.length,
		iface:     l.name,
		checksum:  f.checksum(),
	}
	probe, why := r.decoder.decode(&r.packet)
	switch {
	case why != notDropped:
		counts.undecoded[why]++
	case f.kind == unix.PACKET_OUTGOING:
		counts.requests++
		r.request(&probe, w.view)
	case !isProbe(&probe) || probe.Proto == detector.TCP && f.kind != unix.PACKET_HOST:
		counts.notProbes++
	case !w.takes(&probe, l):
		counts.notLocal++
	case probe.Proto == detector.UDP && r.requests.answeredBy(&probe):
		counts.answers++
	default:
		counts.probes++
		withZones(&probe)
		r.observe(probe)
	}
}

// request remembers a datagram that leaves the host. Others must not make the
// host send what would hide their own probes.
func (r *sniffer) request(p *detector.Probe, v *hostView) {
	if v.originates(p.Source.Addr()) {
		r.requests.sent(p, v.isMany(p.Target.Addr()))
	}
}

// withZones marks link-local addresses with the interface that they mean
// something on, on both sides so that they stay comparable.
func withZones(p *detector.Probe) {
	if addr := p.Source.Addr(); addr.Is6() && addr.IsLinkLocalUnicast() {
		p.Source = netip.AddrPortFrom(addr.WithZone(p.Interface), p.Source.Port())
	}
	if addr := p.Target.Addr(); addr.Is6() && addr.IsLinkLocalUnicast() {
		p.Target = netip.AddrPortFrom(addr.WithZone(p.Interface), p.Target.Port())
	}
}
