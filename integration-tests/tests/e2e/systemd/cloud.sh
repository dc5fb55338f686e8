# What an instance of EC2 finds around it: its metadata, for those who have asked for a token first, and the bucket with the release.
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
# The packages are there, or their registry would be what is tested.
printf '#!/bin/sh\necho "apt-get $*" >>/root/apt-get\n' >/usr/local/bin/apt-get
printf '#!/bin/sh\n[ "$*" = "s3 cp s3://your-bucket/carrel.tar -" ] && tar -C /opt/release -c .\n' >/usr/local/bin/aws
chmod 755 /usr/local/bin/apt-get /usr/local/bin/aws
