# What an instance of EC2 finds around it: its metadata, for those who have asked for a token first, and a first boot that updates packages.
ip addr add 169.254.169.254/32 dev lo
cat >/usr/local/sbin/metadata <<'SERVER'
use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalAddr => '169.254.169.254:80', Listen => 5, ReuseAddr => 1) or die $!;
while (my $caller = $server->accept) {
    my ($request, $headers) = (scalar <$caller>, '');
    while (defined(my $line = <$caller>)) { last if $line =~ /^\r?\n$/; $headers .= $line }
    my $body = $request =~ m{^PUT /latest/api/token } && $headers =~ /x-aws-ec2-metadata-token-ttl-seconds: /i ? 'key'
        : $request =~ m{^GET /latest/meta-data/placement/availability-zone } && $headers =~ /x-aws-ec2-metadata-token: key\r/i ? 'eu-central-1b'
        : undef;
    print $caller defined $body ? "HTTP/1.0 200 OK\r\n\r\n$body" : "HTTP/1.0 401 Unauthorized\r\n\r\n";
    close $caller;
}
SERVER
systemd-run --quiet perl /usr/local/sbin/metadata
# The packages are there and no list names others, or their registry would be what is tested.
rm -rf /etc/apt/sources.list.d/*
: >/etc/apt/sources.list
systemd-run --quiet apt-get update -o APT::Update::Pre-Invoke::='touch /run/updates; sleep 8'
until [ -e /run/updates ]; do sleep 0.1; done
