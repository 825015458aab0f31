package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/detector/capture"
	"github.com/portsnare/portsnare/outputs"
	"github.com/portsnare/portsnare/outputs/jsonlog"
	"github.com/portsnare/portsnare/outputs/portsentrylog"
	"github.com/portsnare/portsnare/parsers/conf"
	"github.com/portsnare/portsnare/parsers/logline"
)

// replay reports the probes in a capture file. What it prints follows from the
// capture and the configuration alone.
func replay(o options, log *logrus.Entry, stdout io.Writer) error {
	ctx, stop := untilSignal()
	defer stop()
	cfg, err := loadConfig(o, log)
	if err != nil {
		return err
	}
	watchAllTraps(&cfg)
	local, err := parseAddrs(o.local)
	if err != nil {
		return err
	}
	file, err := capture.OpenFile(ctx, o.replay)
	if err != nil {
		return err
	}
	defer file.Close()
	survey, err := survey(ctx, file, local, log)
	if err != nil {
		return fmt.Errorf("%s: %w", o.replay, err)
	}
	ignore, warnings, err := conf.LoadIgnore(cfg.Detect.Ignore...)
	logWarnings(log, warnings)
	if err != nil {
		return err
	}
	printed := bufio.NewWriterSize(stdout, 1<<16)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	printer := &eventPrinter{engine: detector.New(policyOf(cfg, survey.InUse, ignore)), output: replayOutput(o, printed), failed: cancel}
	stats, err := capture.Replay(ctx, file, survey, printer.observe)
	explain(log, stats)
	if err := cmp.Or(printer.flush(), printed.Flush()); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", o.replay, err)
	}
	return nil
}

// watchAllTraps has the ports that the daemon would open watched as well: a
// capture shows who tried them, though not who was let in.
func watchAllTraps(cfg *conf.Config) {
	sniffedTCP, sniffedUDP := cfg.Sniffed()
	openedTCP, openedUDP := cfg.Opened()
	cfg.Detect.TCPPorts = union(sniffedTCP, openedTCP)
	cfg.Detect.UDPPorts = union(sniffedUDP, openedUDP)
}

func union(a, b detector.PortSet) detector.PortSet {
	return detector.NewPortSet(slices.Concat(a.Ranges(), b.Ranges())...)
}

// parseAddrs parses the addresses given with --local; none if it is empty.
func parseAddrs(list string) ([]netip.Addr, error) {
	if list == "" {
		return nil, nil
	}
	var addrs []netip.Addr
	for text := range strings.SplitSeq(list, ",") {
		text = strings.TrimSpace(text)
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("--local: %q is not an IP address", text)
		}
		addrs = append(addrs, addr)
	}
	return addrs, nil
}

// survey learns from the capture what the host is, and goes back to its start.
func survey(ctx context.Context, file io.ReadSeeker, local []netip.Addr, log *logrus.Entry) (*capture.Survey, error) {
	s, err := capture.Inspect(ctx, file, local...)
	if err != nil {
		return nil, err
	}
	if len(local) == 0 {
		log.WithField("local", s.Local()).Info("local addresses worked out from the capture; --local sets them")
	}
	if n := s.Uncounted(); n > 0 {
		log.WithField("packets", n).Warn("more addresses than a survey remembers; services may be taken for closed ports")
	}
	_, err = file.Seek(0, io.SeekStart)
	return s, err
}

// explain tells why a replay may have less to say than expected.
func explain(log *logrus.Entry, stats capture.ReplayStats) {
	log = log.WithFields(logrus.Fields{"packets": stats.Packets, "probes": stats.Probes, "not_local": stats.NotLocal})
	for reason, n := range stats.Undecoded {
		log = log.WithField("undecoded_"+strings.ReplaceAll(reason, " ", "_"), n)
	}
	switch {
	case stats.Undecoded["truncated"] > 0:
		log.Warn("packets were captured without their headers; capture with a larger snap length")
	case stats.Probes == 0 && stats.NotLocal > 0:
		log.Warn("no probe is for a local address; does --local name the captured host?")
	default:
		log.Debug("capture replayed")
	}
}

// replayOutput returns what prints the events. Nothing of this host and this
// moment gets in, so that the same capture gives the same bytes everywhere.
func replayOutput(o options, w io.Writer) outputs.Output {
	if o.json {
		return jsonlog.New(appender{w}, jsonlog.Options{BootID: "replay"})
	}
	return portsentrylog.NewLines(appender{w}, appender{w}, logline.PortSentry2{}.AppendLines)
}

// appender writes records to a writer that may take its time.
type appender struct{ io.Writer }

// Append writes a batch of records.
func (a appender) Append(records []byte) error {
	_, err := a.Write(records)
	return err
}

// An eventPrinter takes probes through the engine to an output, without a dispatcher:
// a replay can wait for its reader.
type eventPrinter struct {
	engine *detector.Engine
	output outputs.Output
	failed context.CancelFunc // called when nothing more can be printed

	events   []detector.Event
	sequence uint64 // of the latest event
	err      error  // of the first delivery that failed
}

// printBatch is how many events are printed at once.
const printBatch = 256

func (p *eventPrinter) observe(probe detector.Probe) detector.Decision {
	decision := p.engine.Observe(probe)
	if !decision.Report {
		return decision
	}
	p.sequence++
	decision.Event.Sequence = p.sequence
	p.events = append(p.events, decision.Event)
	if len(p.events) >= printBatch && p.flush() != nil {
		p.failed()
	}
	return decision
}

// flush prints what waits and returns what went wrong so far.
func (p *eventPrinter) flush() error {
	if p.err == nil {
		p.err = p.output.Deliver(context.Background(), p.events)
	}
	p.events = p.events[:0]
	return p.err
}
